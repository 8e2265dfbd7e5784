import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdnet.data import sources
from sdnet.data.decode import read_rgb, read_tensor

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
def test_what_is_no_image_is_refused_with_the_file(tmp_path, read, monkeypatch):
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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 16 // 2 - 1)
    with pytest.raises(ValueError, match=r"whole\.png .*decompression bomb"):
        read(tmp_path / "whole.png")


def test_pil_reads_a_jpeg_that_the_other_decoder_cannot(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.fromarray(noise()).save(path)

    asked = []

    def fail(data, mode):
        asked.append((data, mode))
        raise RuntimeError

    monkeypatch.setattr("torchcodec.decoders.decode_jpeg", fail)
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
