import os
import pickle

import numpy as np
import pytest

from sdnet.data import sources
from sdnet.data.splits import prepare


@pytest.mark.parametrize(
    "name, key, classes", [("cifar10", "labels", 10), ("cifar100", "fine_labels", 100)]
)
def test_cifar_is_read_from_torchvisions_files(tmp_path, monkeypatch, name, key, classes):
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    base = tmp_path / kind.base_folder
    base.mkdir()
    random = np.random.default_rng(0)
    lists = {"train_list": kind.train_list, "test_list": kind.test_list}
    for attribute, files in lists.items():
        for file, _ in files:
            rows = random.integers(0, 256, (classes, 3072), dtype=np.uint8)
            content = pickle.dumps({"data": rows, key: list(range(classes))})
            (base / file).write_bytes(content)
        # the checksums of these files instead of the originals': None means any
        monkeypatch.setattr(kind, attribute, [(file, None) for file, _ in files])
    names = [f"class{i}" for i in range(classes)]
    (base / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": None})

    source = getattr(sources, name)(str(tmp_path), download=False)
    assert source.classes == names and source.parts == [len(source.train)]
    for part, files in ((source.train, kind.train_list), (source.test, kind.test_list)):
        # a file holds each image as (3, 32, 32) in planes; here it is (32, 32, 3)
        contents = [pickle.loads((base / file).read_bytes())["data"] for file, _ in files]
        planes = np.concatenate(contents).reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(part[:], planes.transpose(0, 2, 3, 1))
        assert part.labels.tolist() == [*range(classes)] * len(files)
        assert part.labels.dtype == np.int64 and part[:].dtype == np.uint8


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_what_is_downloaded_is_what_the_setting_says(tmp_path, monkeypatch, name):
    asked = []

    def refuse(root, **options):
        asked.append((root, options.get("train", options.get("split")), options["download"]))
        raise RuntimeError("no network")

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", refuse)
    first = "test" if name == "svhn" else True
    for options, download in (({}, True), ({"download": True}, True), ({"download": False}, False)):
        message = (
            rf"^root '.*' does not hold {name.upper()}, and it could not .*\(no network\); put"
        )
        with pytest.raises(ValueError, match=message):
            getattr(sources, name)(str(tmp_path), **options)
        assert asked.pop() == (str(tmp_path), first, download) and not asked


def test_missing_cifar_without_download_names_the_folder(tmp_path):
    with pytest.raises(ValueError, match=r"root .* does not hold CIFAR10, .*; put the archive "):
        sources.cifar10(str(tmp_path), download=False)


@pytest.fixture
def svhn_folder(tmp_path, monkeypatch):
    """SVHN's three files with 40, 1,030 and 50 images, and their pixels as (N, H, W, C)."""
    from torchvision.datasets import SVHN

    scipy_io = pytest.importorskip("scipy.io")
    random, pixels = np.random.default_rng(0), {}
    for part, count in (("train", 40), ("extra", 1030), ("test", 50)):
        pixels[part] = random.integers(0, 250, (count, 32, 32, 3), dtype=np.uint8)
        pixels[part][:, 0, 31] = (255, 254, 253)  # top right
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]  # 10 is the digit 0
        content = {"X": pixels[part].transpose(1, 2, 3, 0), "y": labels}
        scipy_io.savemat(tmp_path / f"{part}_32x32.mat", content, do_compression=True)
    # the checksums of these files instead of the originals': None means any
    any_sum = {part: [url, file, None] for part, (url, file, _) in SVHN.split_list.items()}
    monkeypatch.setattr(SVHN, "split_list", any_sum)
    return tmp_path, pixels


def test_svhn_joins_train_and_extra_in_this_order(svhn_folder):
    folder, pixels = svhn_folder
    source = sources.svhn(str(folder), download=False)
    assert source.parts == [40, 1030] and source.classes == list("0123456789")
    np.testing.assert_array_equal(source.train[:40], pixels["train"])
    np.testing.assert_array_equal(source.train[40:], pixels["extra"])  # more than one block
    np.testing.assert_array_equal(source.test[:], pixels["test"])
    assert source.train[:][7, 0, 31].tolist() == [255, 254, 253]
    expected = [*(np.arange(1, 41) % 10), *(np.arange(1, 1031) % 10)]
    assert source.train.labels.tolist() == expected and source.train.labels.dtype == np.int64
    assert source.test.labels.tolist() == [*(np.arange(1, 51) % 10)]
    assert source.test.labels.dtype == np.int64
    assert source.train.images.flags.c_contiguous
    assert {file.suffix for file in folder.iterdir()} == {".mat"}  # nothing is left behind


def test_svhns_temporary_files_lie_beside_it_if_possible(svhn_folder, monkeypatch):
    folder, pixels = svhn_folder
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setattr("tempfile.tempdir", str(folder / "nowhere"))
    source = sources.svhn(f"~/{folder.name}", download=False)
    np.testing.assert_array_equal(source.test[:], pixels["test"])
    monkeypatch.setattr(os, "access", lambda *_: False)  # a folder that is shared, read-only
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sources.svhn(str(folder), download=False)


def test_missing_svhn_without_download_names_the_folder_and_the_files(tmp_path):
    with pytest.raises(ValueError, match=r"root .* does not hold SVHN.*put .*extra_32x32\.mat"):
        sources.svhn(str(tmp_path), download=False)


def test_svhns_setting_takes_validation_images_from_both_parts(svhn_folder):
    folder, _ = svhn_folder
    data = prepare(sources.svhn(str(folder), download=False), [2, 5], "pixel", seed=0)
    from_train = data.validation.indices < 40
    assert np.bincount(data.validation.labels[from_train]).tolist() == [2] * 10
    assert np.bincount(data.validation.labels[~from_train]).tolist() == [5] * 10
    assert len(data.train) == 1000 and not set(data.train.indices) & set(data.validation.indices)
