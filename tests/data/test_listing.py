import itertools
import logging
import os
import random
import re
import shutil

import pytest
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from sdnet.data import sources
from sdnet.data.listing import fingerprint, list_folder


@pytest.fixture
def folder(tmp_path):
    """train and test with classes a and b, of two files each, which nobody reads here."""
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(2):
                (tmp_path / "data" / part / name / f"{i}.png").touch()
    return tmp_path / "data"


def names(listing, folder):
    return {
        part: [(os.path.relpath(path, folder), label) for path, label in items]
        for part, items in listing.items()
    }


def test_the_order_is_that_of_torchvision_in_any_tree(folder):
    draw = random.Random(0)
    below = [folder / "train" / "a"]
    for _ in range(40):
        path = draw.choice(below) / draw.choice(["s", "s-x", "s.png", "S", "s y", "é", "s0"])
        if not path.exists():
            path.mkdir()
            below.append(path)
    for _ in range(200):
        name = (
            draw.choice("abAB-_.é") + draw.choice("xyz0") + draw.choice([*IMG_EXTENSIONS, ".JPG"])
        )
        if not name.startswith(".") and not (path := draw.choice(below) / name).exists():
            path.touch()
    _, classes, listing = list_folder(str(folder))
    expected = make_dataset(folder / "train", {"a": 0, "b": 1}, IMG_EXTENSIONS)
    assert classes == ["a", "b"] and len(expected) > 100
    assert listing["train"] == expected


@pytest.mark.parametrize(
    "link, target",
    [
        ("train/a/loop", ".."),
        ("train/a/loop", "."),
        ("train/a/loop", "../.."),
        ("train/a/loop", "/"),
        ("train/a/other", "../b"),
        ("train/b/other", "../a"),
        ("train/b/other", "../../test/a"),
        ("val", "test"),
        ("val", "train"),
        ("train/b/x.png", "../a/0.png"),
        ("train/a/x.png", "0.png"),
        ("test/a/x.png", "../../train/a/0.png"),
        ("train/b/x.png", "y"),  # and that leads to an image of a
    ],
)
@pytest.mark.parametrize("kind", [sources.image_folder, sources.image_stream])
def test_a_link_by_which_an_image_would_be_there_twice_is_refused(folder, link, target, kind):
    (folder / "train/b/y").symlink_to("../a/0.png")
    (folder / link).symlink_to(target)
    with pytest.raises(ValueError, match=r"^root holds images twice, by a link, in ") as error:
        kind(str(folder))
    first, second = re.search("in (.*) and (.*): each", str(error.value)).groups()
    if link != "val":  # of which the classes are named
        assert str(folder / link) in (first, second)


def test_two_links_to_one_folder_are_refused_wherever_that_is(folder):
    (folder.parent / "else" / "sub").mkdir(parents=True)
    (folder / "train/a/one").symlink_to(folder.parent / "else")
    (folder / "train/b/two").symlink_to(folder.parent / "else/sub")
    with pytest.raises(ValueError, match=r"twice, by a link, in .*/one/sub and .*/two: "):
        list_folder(str(folder))


def test_links_to_images_elsewhere_are_followed(folder):
    (folder / "train/a/.hidden.png").touch()
    (folder / "train/a/x.png").symlink_to(".hidden.png")
    (folder / "train/a/y.png").symlink_to("y.png")  # whoever reads it says that it is no image
    before = list_folder(str(folder))
    store = folder.parent / "store"
    shutil.move(folder / "train" / "a", store / "train" / "a")
    (folder / "train" / "a").symlink_to(store / "train" / "a")
    (folder / "test" / "a" / "0.png").rename(store / "blob")  # as git-annex and others have it,
    for name in ("a", "b"):  # where equal contents are one file
        (folder / "test" / name / "0.png").unlink(missing_ok=True)
        (folder / "test" / name / "0.png").symlink_to(store / "blob")
    assert list_folder(str(folder)) == before
    (folder.parent / "by").symlink_to(folder)
    by_link = list_folder(str(folder.parent / "by"))
    assert names(by_link[2], folder.parent / "by") == names(before[2], folder)


@pytest.mark.parametrize("link", ["train/c", "test/c", "train/a/sub"])
def test_a_link_to_a_folder_that_is_not_there_is_not_passed_over(folder, link):
    (folder / link).symlink_to("/nowhere")
    with pytest.raises(ValueError, match=f"^root holds a link that leads nowhere: {folder / link}"):
        list_folder(str(folder))


def test_files_that_are_not_read_are_told_in_a_line_for_each_part(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    caplog.set_level("INFO")
    list_folder(str(folder))
    assert not caplog.records
    for name in ("a/x.gif", "a/y.GIF", "b/z.txt", "b/README", "b/w.\033[31mx", "loose.png", "a/.x"):
        (folder / "train" / name).touch()
    for i in range(6):
        (folder / "test" / "a" / f"x.{i}").touch()
    list_folder(str(folder))
    train, test = (record.getMessage() for record in caplog.records)
    start = "train/ holds files that are not read: 2 .gif, "
    assert train.startswith(start) and train.endswith(", 1 outside the classes' folders")
    assert {"1 .txt", "1 without an ending", r"1 .\x1b[31mx"} < set(
        train.split(": ")[1].split(", ")
    )
    assert re.fullmatch(r"test/ holds .*: (1 \.\d, ){5}others", test)


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"^root holds a folder that cannot be read: .*train/b"):
        list_folder(str(folder))


def test_small_copies_of_a_nas_are_no_images(folder):
    before = list_folder(str(folder))
    shutil.copytree(folder / "train" / "a", folder / "train" / "a" / "@eaDir" / "0.png")
    assert list_folder(str(folder)) == before


def test_a_fingerprint_is_that_of_names_and_sizes_wherever_the_folder_is(tmp_path):
    def made(root, change=lambda folder: None):
        folder = tmp_path / root
        for part, label, i in itertools.product(("train", "test"), "ab", range(2)):
            file = folder / part / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(file)
        change(folder)
        (folder / "train" / "a" / ".hidden.png").touch()
        folder, _, listing = list_folder(str(folder))
        return fingerprint(folder, listing)

    first = made("x")
    assert made("elsewhere/y") == first and len(first) == 16
    changes = {
        "added": lambda folder: Image.new("RGB", (4, 4)).save(folder / "train" / "a" / "2.png"),
        "removed": lambda folder: (folder / "test" / "b" / "1.png").unlink(),
        "renamed": lambda folder: (folder / "train" / "a" / "1.png").rename(
            folder / "train" / "a" / "3.png"
        ),
        "moved": lambda folder: (folder / "train" / "a" / "1.png").rename(
            folder / "train" / "b" / "3.png"
        ),
        "larger": lambda folder: Image.new("RGB", (9, 9)).save(folder / "train" / "a" / "1.png"),
        "another": lambda folder: (folder / "train" / "a" / "1.png").write_bytes(
            (folder / "train" / "a" / "1.png").read_bytes()[::-1]
        ),
    }
    assert len({first, *(made(name, change) for name, change in changes.items())}) == 7


def test_folders_that_are_not_read_are_named(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sdnet")
    root = folder
    (root / "holdout").mkdir()
    (root / "train" / "__MACOSX").mkdir()
    assert list_folder(str(root))[1] == ["a", "b"]
    assert any("holds folders that are not read: holdout" in m for m in caplog.messages)
