import os
import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sdnet.data import sources
from sdnet.data.splits import prepare


def test_digits_have_a_fixed_stratified_test_part_of_real_images():
    source = sources.digits()
    assert source.train[:].shape == (1437, 16, 16, 1)
    assert source.test[:].shape == (360, 16, 16, 1)
    assert source.train[:].max() > 200 and source.train[:].dtype == np.uint8
    counts = np.bincount(source.test.labels)
    assert len(counts) == 10 and counts.min() >= 34 and counts.max() <= 38
    assert (sources.digits().test[:] == source.test[:]).all()


@pytest.mark.parametrize("moved", [False, True])
def test_digits_are_what_scikit_learn_loads_and_splits(moved, monkeypatch):
    if moved:  # the file is not where it was
        monkeypatch.setattr(sources, "find_spec", lambda name: None)
    bunch = load_digits()
    rows = train_test_split(np.arange(1797), test_size=0.2, stratify=bunch.target, random_state=0)
    source = sources.digits(size=8)
    for part, expected in zip((source.train, source.test), rows, strict=True):
        assert (part.indices == expected).all() and (part.labels == bunch.target[expected]).all()
        assert (part[:][..., 0] == np.round(bunch.images[expected] * (255 / 16))).all()
    assert source.classes == [str(name) for name in bunch.target_names]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes; pixel value 10 * class + index, in train (3 each) and val (1 each)."""
    for part, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(("ant", "bee")):
            for i in range(count):
                pixels = np.full((4, 6, 3), 10 * label + i, np.uint8)
                save(tmp_path / part / name / f"sub{i}" / f"{i}.png", pixels)
    return tmp_path


def test_image_folder_reads_nested_folders_in_order(folder):
    source = sources.image_folder(str(folder))
    assert source.classes == ["ant", "bee"]
    assert source.train[:].shape == (6, 4, 6, 3)
    assert source.train[:][:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_one_held_out_folder_is_the_test_set_and_of_two_val_validates(folder):
    alone = sources.image_folder(str(folder))
    assert alone.validation is None and alone.test.labels.tolist() == [0, 1]
    for name in ("ant", "bee"):
        save(folder / "test" / name / "x.png", np.full((4, 6, 3), 77, np.uint8))
    both = sources.image_folder(str(folder))
    assert (both.test[:] == 77).all()
    assert (both.validation[:] == alone.test[:]).all()


def test_every_mode_becomes_rgb(folder):
    ramp = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    rgba = np.dstack([ramp, ramp, ramp, np.full_like(ramp, 128)])
    save(folder / "train" / "ant" / "a_grey.png", ramp)
    save(folder / "train" / "ant" / "a_rgba.png", rgba)
    save(folder / "train" / "ant" / "a_wide.png", ramp.astype(np.uint16) * 257)
    (folder / "train" / "ant" / "a_palette.png").parent.mkdir(exist_ok=True)
    Image.fromarray(ramp).convert("P").save(folder / "train" / "ant" / "a_palette.png")
    images = sources.image_folder(str(folder)).train[:4]
    for image in images[[0, 1, 2]]:  # a_grey, a_palette, a_rgba in order of name
        np.testing.assert_array_equal(image, np.dstack([ramp] * 3))
    np.testing.assert_array_equal(images[3][..., 0], ramp)  # 16 bits: not clipped at 255


def test_images_of_different_sizes_need_a_size_and_are_then_cropped(folder):
    save(folder / "train" / "bee" / "other.png", np.full((9, 5, 3), 50, np.uint8))
    with pytest.raises(ValueError, match=r"size must be given.*other\.png is 5x9"):
        sources.image_folder(str(folder))
    assert sources.image_folder(str(folder), size=4).train[:].shape == (7, 4, 4, 3)


def test_the_cache_is_used_until_a_file_changes(folder, monkeypatch):
    first = sources.image_folder(str(folder)).train[:]
    file = folder / "train" / "ant" / "sub0" / "0.png"
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_read_image", None)  # decoding anything would fail
        assert (sources.image_folder(str(folder)).train[:] == first).all()
    save(file, np.full((4, 6, 3), 99, np.uint8))
    os.utime(file, ns=(1, 1))
    assert sources.image_folder(str(folder)).train[:][0, 0, 0, 0] == 99


def test_decoding_in_processes_equals_decoding_in_one(folder):
    for i in range(150):
        save(folder / "train" / "ant" / f"{i}.png", np.full((4, 6, 3), i, np.uint8))
    files = sorted((folder / "train").rglob("*.png"))
    one, two = (sources._decode_files(files, None, workers) for workers in (1, 2))
    assert (one == two).all()


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda f: (f / "train/bee/sub0/0.png").write_bytes(b"x"), r"cannot be read: .*0\.png"),
        (lambda f: (f / "train/cat").mkdir(), r"class without images in train/.*cat"),
        (lambda f: (f / "val/cat").mkdir(), r"classes in val/ that train/ has not: \['cat'\]"),
        (lambda f: (f / "val").rename(f / "valid"), "test/ or val/"),
        (lambda f: (f / "train").rename(f / "training"), "must hold a folder train/"),
        (lambda f: (f / "val/bee").rename(f / "val/.bee"), r"missing: \['bee'\]"),
    ],
)
def test_a_broken_folder_is_one_clear_error(folder, break_it, message):
    break_it(folder)
    with pytest.raises(ValueError, match=message):
        sources.image_folder(str(folder))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"root .*nowhere.* is not a folder"):
        sources.image_folder(str(tmp_path / "nowhere"))


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
    assert source.classes == names
    assert source.test.labels.tolist() == list(range(classes))
    # the file holds each image as (3, 32, 32) in planes; here it is (32, 32, 3)
    last = pickle.loads((base / lists["test_list"][-1][0]).read_bytes())["data"][-1]
    np.testing.assert_array_equal(
        source.test.images[-1], last.reshape(3, 32, 32).transpose(1, 2, 0)
    )


def test_missing_cifar_without_download_names_the_folder(tmp_path):
    with pytest.raises(ValueError, match=r"root .* does not hold CIFAR10"):
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
    assert source.train.images.flags.c_contiguous
    assert {file.suffix for file in folder.iterdir()} == {".mat"}  # nothing is left behind


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
