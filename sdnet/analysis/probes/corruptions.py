"""Images made worse at five strengths, after Hendrycks & Dietterich (2019).

They are made here, from a part's own images of 8 bits before they are normalised, and kept nowhere.
"""

import dataclasses
import io
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdnet import rng
from sdnet.analysis.measures import measure
from sdnet.analysis.probes.subject import Subject
from sdnet.data.split import Files, Split

# By kind the constants of strengths 1 to 5: of CIFAR-10-C for images of up to SMALL pixels a side,
# and of ImageNet-C (github.com/hendrycks/robustness).
SMALL = 64
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # standard deviation, of values 0..1
    "gaussian noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    # standard deviation in pixels
    "blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    # factor on the distance from each channel's mean
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    # of the sides, to which the image is shrunk
    "pixelation": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    # quality
    "JPEG": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
STRENGTHS = range(1, 6)


def corruptions(subject: Subject, seed: int, part: str = "test") -> list[dict[str, Any]]:
    """Measures by kind and strength; the first row, of strength 0, is of the images as they are."""
    rows = [{"kind": "none", "strength": 0, **measure(subject.predict(part))}]
    for kind in CONSTANTS:
        for strength in STRENGTHS:
            found = subject.predict(corrupted(subject.parts[part], kind, strength, seed))
            rows.append({"kind": kind, "strength": strength, **measure(found)})
    return rows


def corrupted(part: Split | Files, kind: str, strength: int, seed: int) -> Split | Files:
    """A part whose images are corrupted: now, in memory, or as they are read."""
    change = partial(corrupt, kind=kind, strength=strength, seed=seed)
    if isinstance(part, Files):
        return dataclasses.replace(part, changed=change)
    images = np.empty((len(part), *part.shape), np.uint8)
    for row in range(len(part)):
        images[row] = change(part[row : row + 1][0], row)
    return Split(images, part.labels)


def corrupt(image: np.ndarray, row: int, kind: str, strength: int, seed: int) -> np.ndarray:
    """An image (H, W, C) of uint8, corrupted; what is random is keyed by the seed and its row."""
    constant = CONSTANTS[kind][max(image.shape[:2]) > SMALL][strength - 1]
    if kind == "gaussian noise":
        noise = rng.generator(seed, kind, strength, row).normal(0.0, 255 * constant, image.shape)
        return _eight_bits(image + noise)
    if kind == "contrast":
        mean = image.mean((0, 1), keepdims=True)
        return _eight_bits((image - mean) * constant + mean)
    if kind == "blur":
        return _blurred(image, constant)
    if image.shape[2] == 3:
        return _by_pil(image, kind, constant)
    planes = [_by_pil(plane, kind, constant) for plane in np.moveaxis(image, 2, 0)]
    return np.stack(planes, axis=2)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    from torchvision.transforms.v2 import functional

    # Four standard deviations, but no further than mirroring at the border reaches.
    reach = min(round(4 * sigma), min(image.shape[:2]) - 1)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    blurred = functional.gaussian_blur(pixels, [2 * reach + 1] * 2, [sigma] * 2)
    return blurred.permute(1, 2, 0).numpy()


def _by_pil(pixels: np.ndarray, kind: str, constant: float) -> np.ndarray:
    """Pixels (H, W, 3), or (H, W) of one channel."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if kind == "pixelation":
        small = [max(1, int(side * constant)) for side in image.size]
        shrunk = image.resize((small[0], small[1]), Image.Resampling.BOX)
        return np.array(shrunk.resize(image.size, Image.Resampling.BOX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(constant))
    return np.array(Image.open(file))
