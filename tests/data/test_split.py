import numpy as np
import pytest
import torch

from sdnet.data.split import Files, Reading, Source, Split

IMAGES = np.zeros((5, 4, 6, 3), np.uint8)


def split(labels=(0, 1, 0, 1, 0), images=IMAGES):
    return Split(images, labels)


def test_labels_of_any_whole_kind_become_int64():
    for labels in ([0, 1, 2, 3, 4], np.arange(5, dtype=np.uint8), tuple(range(5))):
        made = split(labels)
        assert made.labels.dtype == np.int64 and made.labels.tolist() == [0, 1, 2, 3, 4]
        assert made.subset(np.array([3, 1])).labels.tolist() == [3, 1] and len(made) == 5


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: split(images=IMAGES[0]), "images must be an array (N, H, W, C) of uint8, got (4,"),
        (lambda: split(images=IMAGES / 1), "got (5, 4, 6, 3) of float64"),
        (lambda: split(images=IMAGES.tolist()), "of <class 'list'>"),
        (
            lambda: split([0] * 4),
            "labels must be 5 whole numbers, one per image, got (4,) of int64",
        ),
        (lambda: split([[0]] * 5), "labels must be 5 whole numbers, one per image, got (5, 1)"),
        (lambda: split([0.0] * 5), "got (5,) of float64"),
        (lambda: split(["a"] * 5), "got (5,) of <U1"),
        (lambda: Source(split(), None, ["a", "b"]), "test must be a Split or Files"),
        (lambda: Source(IMAGES, split(), ["a", "b"]), "train must be a Split or Files"),
        (lambda: Source(split(), split(), ["a", "b"], []), "validation must be a Split or Files"),
        (
            lambda: Source(split(), split([], IMAGES[:0]), ["a", "b"]),
            "test must be a Split or Files with an image or more",
        ),
        (
            lambda: Source(split(), split(images=IMAGES[:, 1:]), ["a", "b"]),
            "test must have images of the shape of train's, (4, 6, 3), got (3, 6, 3)",
        ),
        (lambda: Source(split(), split(), ["a"]), "labels of train must be 0 to 0, places in"),
        (
            lambda: Source(split(), split([0, 1, 2, 0, 0]), ["a", "b"]),
            "labels of test must be 0 to 1, places in classes, got 0 to 2",
        ),
        (
            lambda: Source(split(), split(), ["a", "b"], split([0, 0, 0, -1, 0])),
            "labels of validation must be 0 to 1, places in classes, got -1 to 0",
        ),
    ],
)
def test_what_a_data_set_of_ones_own_gets_wrong_is_named(make, message):
    with pytest.raises(ValueError) as raised:
        make()
    assert message in str(raised.value)


def test_a_data_set_may_be_made_of_tensors_and_arrays_of_any_library():
    labels = torch.tensor([0, 1, 0, 1, 1], dtype=torch.uint8)
    part = Split(torch.from_numpy(IMAGES), labels)
    assert isinstance(part.images, np.ndarray) and part.labels.dtype == np.int64
    source = Source(part, part, classes=np.array(["a", "b"]))
    assert source.classes == ["a", "b"] and {type(name) for name in source.classes} == {str}


def test_a_source_joins_memory_and_files_of_one_shape():
    files = Files("x", np.array([b"a", b"b"]), np.array([0, 1]), Reading(size=4, resize=4))
    square = split(images=np.zeros((5, 4, 4, 3), np.uint8))
    source = Source(square, files, ["a", "b"], validation=files)
    assert source.parts == [5]
