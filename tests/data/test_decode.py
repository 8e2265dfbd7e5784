import errno
import logging
import os
import re
import socket
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from sdnet.data import decode, sources
from sdnet.data.decode import JPEG, read_rgb, read_tensor

TURNED = {  # EXIF orientation: what an image looks like whose stored pixels are given
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}
READERS = {
    "read_rgb": lambda path: np.asarray(read_rgb(path)),
    "read_tensor": lambda path: read_tensor(str(path)).permute(1, 2, 0).numpy(),
}
each_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


def noise(height=24, width=16, channels=3):
    shape = (height, width, channels)[: 3 if channels > 1 else 2]
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@each_reader
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_are_upright_as_their_files_say(tmp_path, kind, read):
    image = Image.fromarray(noise())
    image.save(tmp_path / "plain", kind)
    stored = np.asarray(Image.open(tmp_path / "plain"))
    for orientation, turned in TURNED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "turned", kind, exif=exif)
        got = read(tmp_path / "turned")
        assert got.dtype == np.uint8 and got.shape == turned(stored).shape
        assert np.abs(got.astype(int) - turned(stored)).max() <= 2  # decoders of JPEG may differ


@each_reader
def test_grey_and_other_modes_are_the_same_colours_in_rgb(tmp_path, read):
    pixels, grey = noise(), noise(channels=1)
    alpha = np.dstack([pixels, grey])
    for name, stored, expected in (
        ("L", grey, np.dstack([grey] * 3)),
        ("RGB", pixels, pixels),
        ("RGBA", alpha, pixels),  # as if it were opaque
        ("LA", np.dstack([grey, grey[::-1]]), np.dstack([grey] * 3)),
        ("1", grey > 99, np.dstack([np.where(grey > 99, 255, 0)] * 3)),
    ):
        Image.fromarray(stored).save(tmp_path / name, "PNG")
        np.testing.assert_array_equal(read(tmp_path / name), expected, err_msg=name)
    for mode in ("L", "CMYK", "RGB"):
        Image.fromarray(pixels).convert(mode).save(tmp_path / mode, "JPEG", quality=95)
        expected = np.asarray(Image.open(tmp_path / mode).convert("RGB")).astype(int)
        assert np.abs(read(tmp_path / mode) - expected).max() <= 2, mode


@each_reader
@pytest.mark.parametrize("mode", ["PNG", "TIFF big-endian", "TIFF 32 bits"])
def test_sixteen_bits_become_the_nearest_of_eight(tmp_path, read, mode):
    values = np.array([[0, 128, 129, 257, 385, 386, 32767, 32768, 65278, 65535]], np.uint16)
    image = {
        "PNG": lambda: Image.fromarray(values),
        "TIFF big-endian": lambda: Image.frombytes(
            "I;16B", (10, 1), values.astype(">u2").tobytes()
        ),
        "TIFF 32 bits": lambda: Image.fromarray(values.astype(np.int32)),
    }[mode]()
    image.save(tmp_path / "wide", mode.split()[0])
    expected = [0, 0, 1, 1, 1, 2, 127, 128, 254, 255]  # 257 to each, the nearest
    assert read(tmp_path / "wide").tolist() == [[[v] * 3 for v in expected]]


@each_reader
@pytest.mark.parametrize(
    "values", [np.int32([[0, 65536]]), np.int32([[-1, 5]]), np.float32([[1.5]])]
)
def test_values_that_are_neither_of_8_nor_16_bits_are_refused_with_the_file(tmp_path, read, values):
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)
    mode = "F" if values.dtype == np.float32 else "I"
    message = f"root holds an image that cannot be read: {path} (mode {mode} with values that are"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        read(path)


@each_reader
def test_what_is_no_image_is_refused_with_the_file(tmp_path, read):
    Image.fromarray(noise()).save(tmp_path / "whole.png")
    Image.fromarray(noise()).save(tmp_path / "whole.jpg")
    damaged = {"text.png": b"no image", "empty.jpg": b"", "start.jpg": b"\xff\xd8\xff"}
    for name in ("whole.png", "whole.jpg"):
        damaged[f"cut_{name}"] = (tmp_path / name).read_bytes()[:300]
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    for name in (*damaged, "absent.png"):
        with pytest.raises(ValueError, match=f"^root holds an image that .*/{name} "):
            read(tmp_path / name)


def claims(path, width, height):
    """A small file that says that it is a large image."""
    Image.fromarray(noise()).save(path)
    data = bytearray(path.read_bytes())
    if path.suffix == ".png":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    path.write_bytes(data)


def sparse(path):
    path.write_bytes(JPEG)
    os.truncate(path, 10**12)


ATTACKS = {
    "fifo.jpg": os.mkfifo,
    "socket.jpg": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "device.jpg": lambda path: path.symlink_to("/dev/zero"),
    "itself.jpg": lambda path: path.symlink_to(path),
    "nowhere.jpg": lambda path: path.symlink_to("nowhere"),
    "sparse.jpg": sparse,
    "large.jpg": lambda path: claims(path, 20_000, 20_000),
    "large.png": lambda path: claims(path, 20_000, 20_000),
    "just.jpg": lambda path: claims(path, 9460, 9460),
    "just.png": lambda path: claims(path, 1, 89_478_486),
    "program.png": lambda path: path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    ),
}


@each_reader
@pytest.mark.parametrize("name", ATTACKS)
def test_what_would_be_waited_for_or_fill_the_memory_is_refused_unread(
    tmp_path, monkeypatch, name, read
):
    monkeypatch.chdir(tmp_path)
    ATTACKS[name](Path(name))
    writer = os.open(name, os.O_RDWR) if name == "fifo.jpg" else None  # else opening it would wait
    decoded = []
    monkeypatch.setattr(decode, "jpeg_decoder", lambda: lambda *_, **__: decoded.append(name))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: decoded.append(name))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: decoded.append(name))
    if name == "sparse.jpg":
        monkeypatch.setattr(Path, "read_bytes", lambda _: decoded.append(name))
    with pytest.raises(ValueError, match=f"^root holds an image that cannot be read: {name} "):
        read(name)
    assert not decoded and decode.is_bad(name)
    if writer:
        os.close(writer)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@each_reader
def test_as_many_pixels_as_pil_allows_are_read(tmp_path, monkeypatch, name, read):
    Image.fromarray(noise()).save(tmp_path / name)
    monkeypatch.setattr(decode, "SMALL", 1)
    for most in (24 * 16, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        assert read(tmp_path / name).shape == (24, 16, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 16 - 1)
    with pytest.raises(ValueError, match=r"16x24 pixels, more than 383 in all"):
        read(tmp_path / name)


def test_a_file_is_not_bad_because_the_disk_or_the_memory_is(tmp_path, monkeypatch):
    for error in (OSError(errno.EIO, "broken"), OSError(errno.EMFILE, "many")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", lambda _, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(ValueError, match=r"x\.png"):
                decode.is_bad("x.png")
    Image.fromarray(noise()).save(tmp_path / "x.png")
    assert not decode.is_bad(tmp_path / "x.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: bytearray(2**62))
    with pytest.raises(MemoryError):
        decode.is_bad(tmp_path / "x.png")


def spoilt(draw, exif):
    """EXIF data of which some bytes are others, or the rest is missing."""
    exif = bytearray(exif)
    for _ in range(draw.integers(1, 5)):
        exif[draw.integers(len(exif))] = draw.integers(256)
    return bytes(exif[: draw.integers(1, len(exif) + 1)])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_of_malformed_exif_both_readers_think_the_same_and_the_pixels_are_there(tmp_path, kind):
    draw, path, turned = np.random.default_rng(0), tmp_path / "x", 0
    image = Image.fromarray(noise(3, 2)).resize((16, 24))
    options = {"lossless": True} if kind == "WEBP" else {}
    image.save(path, kind, **options)
    stored = {o: f(np.asarray(Image.open(path).convert("RGB"))) for o, f in TURNED.items()}
    with warnings.catch_warnings(record=True, action="always") as warned:
        for i in range(150):
            exif = Image.Exif()
            exif[0x0112], exif[0x010F] = int(draw.integers(10)), "maker"
            data = spoilt(draw, exif.tobytes()[6 if kind == "WEBP" else 0 :])
            if kind == "JPEG" and i % 2:
                options = {"xmp": b'tiff:Orientation="%d"' % draw.integers(10)}
            elif kind == "JPEG":
                options = {}
            image.save(path, kind, exif=data, **options)
            one, other = (read(path).astype(int) for read in READERS.values())
            assert one.shape == other.shape and np.abs(one - other).max() <= 2
            turned += one.shape[0] == 16
            like = [p for p in stored.values() if p.shape == one.shape]
            assert min(np.abs(one - p).max() for p in like) <= 2
    assert 0 < turned < 150 and not warned


@each_reader
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_xmp_turns_where_exif_does_not(tmp_path, kind, read):
    image, path = Image.fromarray(noise(3, 2)).resize((16, 24)), tmp_path / "x"
    xmp = '<rdf:Description tiff:Orientation="6"/>'
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        image.save(path, kind, pnginfo=info)
    else:
        image.save(path, kind, xmp=xmp.encode())
    assert read(path).shape == (16, 24, 3)


@each_reader
def test_an_image_of_16_bits_is_turned_as_well(tmp_path, read):
    values = np.arange(24, dtype=np.uint16).reshape(4, 6) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "wide.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "wide.png")[..., 0], np.rot90(values // 257, -1))


def test_every_value_of_16_bits_becomes_the_nearest_of_8(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "all.png")
    got = np.asarray(read_rgb(tmp_path / "all.png"))[..., 0]
    np.testing.assert_array_equal(got, np.round(values * (255 / 65535)))


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, TypeError])
def test_pil_takes_over_where_torchcodec_does_not_load(tmp_path, monkeypatch, caplog, error):
    class Broken(dict):
        def __getattr__(self, name):
            raise error("no FFmpeg\nat all")

    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Broken())
    decode.jpeg_decoder.cache_clear()
    try:
        for name in "ab":
            Image.fromarray(noise()).save(tmp_path / name, "JPEG")
            assert (READERS["read_tensor"](tmp_path / name) == Image.open(tmp_path / name)).all()
    finally:
        decode.jpeg_decoder.cache_clear()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "torchcodec does not load, PIL reads JPEG files, more slowly: no FFmpeg"


def test_pil_reads_a_jpeg_that_the_other_decoder_cannot(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.fromarray(noise()).save(path)

    asked = []

    def fail(data, mode):
        asked.append((data, mode))
        raise RuntimeError

    monkeypatch.setattr(decode, "jpeg_decoder", lambda: fail)
    assert (READERS["read_tensor"](path) == np.asarray(Image.open(path))).all()
    assert asked == [(path.read_bytes(), "RGB")]
    Image.fromarray(noise()).save(path, "PNG")  # whatever its name
    assert (READERS["read_tensor"](path) == noise()).all() and len(asked) == 1


def test_both_kinds_of_folders_hold_the_same_upright_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(noise()).save(tmp_path / part / "a" / "x.png", exif=exif)
    upright = np.rot90(noise(), -1)
    np.testing.assert_array_equal(sources.image_folder(str(tmp_path)).test[:], [upright])
    stream = sources.image_stream(str(tmp_path), size=16, resize=16).test
    assert Path(stream.path(0)) == tmp_path / "test" / "a" / "x.png"
    assert (READERS["read_tensor"](stream.path(0)) == upright).all()
