"""One image file as 8-bit RGB, whatever its mode.

Libraries were chosen by `benchmarks/input.py`: TorchCodec decodes JPEG files a third faster than
PIL, to the same pixels; PIL reads everything else.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

JPEG = b"\xff\xd8"  # the first bytes of such a file


def read_rgb(path: Path | str) -> Image.Image:
    """An image in mode RGB, upright: turned as its file says (EXIF).

    Raises:
        ValueError: a file that is no image, or whose values are not 8 or 16 bits; it is named.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: PIL would clip at 255
                values = np.asarray(image, dtype=np.float64)
                if image.mode == "F" or values.min() < 0 or values.max() > 65535:
                    raise ValueError(f"mode {image.mode} with values that are not 8 or 16 bits")
                image = Image.fromarray(np.round(values * (255 / 65535)).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"root holds an image that cannot be read: {path} ({error})") from error


def read_tensor(path: str) -> Tensor:
    """An image (3, H, W) as uint8, upright.

    Raises:
        ValueError: see `read_rgb`.
    """
    from torchcodec.decoders import decode_jpeg

    with suppress(OSError, RuntimeError):  # PIL may know better, or say what is wrong
        data = Path(path).read_bytes()
        if data.startswith(JPEG):
            return decode_jpeg(data, mode="RGB")
    return torch.from_numpy(np.array(read_rgb(path))).permute(2, 0, 1)
