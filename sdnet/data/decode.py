"""One image file as 8-bit RGB, whatever its mode.

Libraries were chosen by `benchmarks/input.py`: TorchCodec decodes JPEG files a third faster than
PIL, to the same pixels; PIL reads everything else, and JPEG files where TorchCodec does not load.
"""

import errno
import logging
import os
import stat
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

log = logging.getLogger(__name__)
JPEG = b"\xff\xd8"  # the first bytes of such a file
MOST_BYTES = 6 * 10**8  # of a file: those of the most pixels, of 16 bits
SMALL = 2**24  # pixels: so few never fill the memory
OF_THE_FILE = (None, errno.ENOENT, errno.EACCES, errno.ELOOP)  # other errors are the machine's
Turn = Image.Transpose
TURNS = {
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}


def read_rgb(path: Path | str) -> Image.Image:
    """An image in mode RGB, upright: turned as its file says (EXIF, else XMP).

    Raises:
        ValueError: a file that is no image, claims more pixels than `PIL.Image.MAX_IMAGE_PIXELS`,
            or whose values are not 8 or 16 bits; it is named.
    """
    try:
        _check_file(path)
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            _check_header(image)
            image.load()
            turn = _turn(image)  # after the pixels: a PNG may say so at its end
            if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: PIL would clip at 255
                image = _eight_bits(image)
            if turn is not None:
                image = image.transpose(turn)
            return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # PIL's readers of formats raise anything
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"root holds an image that cannot be read: {path} ({reason}); "
            f"dataset.on_bad_image=skip leaves such images out"
        ) from error


def is_bad(path: Path | str) -> bool:
    """Whether `read_rgb` cannot read a file for what it is.

    Raises:
        ValueError: it cannot be read for now.
    """
    try:
        read_rgb(path)
    except ValueError as error:
        if getattr(error.__cause__, "errno", None) not in OF_THE_FILE:
            raise
        return True
    return False


def read_tensor(path: str) -> Tensor:
    """An image (3, H, W) as uint8, as `read_rgb` gives it.

    Raises:
        ValueError: see `read_rgb`.
    """
    decode = jpeg_decoder()
    if decode is not None:
        with suppress(Exception):  # PIL may know better, or say what is wrong
            _check_file(path)
            data = Path(path).read_bytes()
            if data.startswith(JPEG):
                return _read_jpeg(data, decode)
    return _tensor(read_rgb(path))


@cache
def jpeg_decoder() -> Callable[..., Tensor] | None:
    """TorchCodec's function; None where that does not load, which is told."""
    try:
        from torchcodec.decoders import decode_jpeg
    except Exception as error:  # not there, or without its libraries
        reason = str(error).strip().partition("\n")[0]
        log.info("torchcodec does not load, PIL reads JPEG files, more slowly: %s", reason)
        return None
    return decode_jpeg


def _read_jpeg(data: bytes, decode: Callable[..., Tensor]) -> Tensor:
    if _is_plain(data):
        return decode(data, mode="RGB")
    with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data)) as header:
        _check_header(header)
        turn = _turn(header)
    for name, content in header.applist:
        if name == "APP1":  # each would be EXIF to the decoder, and turn it; only PIL is to
            size = (2 + len(content)).to_bytes(2, "big")
            data = data.replace(b"\xff\xe1" + size, b"\xff\xef" + size)
    pixels = decode(data, mode="RGB")
    if turn is None:
        return pixels
    return _tensor(Image.fromarray(pixels.permute(1, 2, 0).numpy()).transpose(turn))


def _is_plain(data: bytes) -> bool:
    """Whether a JPEG file has fewer pixels than need be counted, and no word of how to turn them.

    PIL would find that out, too, in a twentieth of the time that all of reading takes.
    """
    at, small = 2, False
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # here the pixels begin
            return small
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker in (0xE1, 0xFF):
            return False  # APP1, where EXIF and XMP are, or nothing that has a length
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            small = height * width < SMALL
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _check_file(path: Path | str) -> None:
    """Refuses what would be waited for without end, or would fill the memory."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    if found.st_size > MOST_BYTES:
        raise ValueError(f"{found.st_size} bytes, more than {MOST_BYTES}")


def _check_header(image: Image.Image) -> None:
    """Refuses an image before its pixels are decoded."""
    if image.format == "EPS":
        raise ValueError("EPS, which is a program")
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {most} in all")


def _turn(image: Image.Image) -> Turn | None:
    """How an image is to be turned; None for one whose EXIF data are malformed."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # whatever the data break on
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.array(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"mode {image.mode} with values that are not 8 or 16 bits")
    values = values.astype(np.int32)
    values += 128
    values //= 257  # the nearest: 65535 is 255 times as much
    return Image.fromarray(values.astype(np.uint8))
