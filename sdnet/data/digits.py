"""Real handwritten digits that come with scikit-learn: a data set without a download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sdnet.data.split import Source, Split

LARGEST = 512  # pixels of an edge: half a gigabyte of images
DIGITS_ORDER = Path(__file__).with_name("digits_order.txt")


def digits(size: int = 16) -> Source:
    """Scikit-learn's 1,797 handwritten digits (UCI ML Repository), bundled with that library.

    Args:
        size: the 8x8 originals are enlarged bilinearly to `size` x `size` pixels.

    The test part is a fifth (360 images), stratified by class and the same for every seed.
    """
    from PIL import Image

    if type(size) is not int or not 8 <= size <= LARGEST:
        raise ValueError(f"size must be a whole number of pixels, 8 to {LARGEST}, got {size!r}")
    table = _read_digits()
    images = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
            for image in np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        ]
    )[..., None]
    everything = Split(images, table[:, 64].astype(np.int64))
    # All images in the order of train_test_split(..., test_size=0.2, stratify=labels,
    # random_state=0): 1,437 for training, then those for test.
    order = np.array(DIGITS_ORDER.read_text().split(), dtype=np.int64)
    train, test = np.split(order, [1437])
    return Source(everything.subset(train), everything.subset(test), [str(d) for d in range(10)])


def _read_digits() -> np.ndarray:
    """A row for each image: its 64 pixels, of 0 to 16, and its label."""
    # The file that load_digits reads: scikit-learn itself takes a second to import, with pandas and
    # much of scipy.
    package = find_spec("sklearn")
    file = package and Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    if file and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # which knows where the file has gone

    return np.column_stack(load_digits(return_X_y=True))
