import logging
import os
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from sdnet.data import cache, folders, readers
from sdnet.data.split import LISTING, Files
from sdnet.data.splits import prepare
from sdnet.data.streaming import Reader


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
    source = folders.image_folder(str(folder))
    assert source.classes == ["ant", "bee"]
    assert source.train[:].shape == (6, 4, 6, 3)
    assert source.train[:][:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", [folders.image_folder, folders.image_stream])
def test_one_held_out_folder_is_the_test_set_and_of_two_val_validates(folder, kind):
    def holds(split, name):
        rows = range(len(split))
        if isinstance(split, Files):
            return {Path(split.path(row)).relative_to(folder).parts[0] for row in rows} == {name}
        values = {"train": {0, 1, 2, 10, 11, 12}, "val": {0, 10}, "test": {77}}
        return set(split[:].flat) == values[name]

    alone = kind(str(folder))
    assert alone.validation is None and alone.test.labels.tolist() == [0, 1]
    assert holds(alone.test, "val") and holds(alone.train, "train") and alone.parts == [6]
    for name in ("ant", "bee"):
        save(folder / "test" / name / "x.png", np.full((4, 6, 3), 77, np.uint8))
    both = kind(str(folder))
    assert holds(both.test, "test") and holds(both.validation, "val") and holds(both.train, "train")
    assert both.validation.labels.tolist() == both.test.labels.tolist() == [0, 1]
    shutil.rmtree(folder / "val")
    other = kind(str(folder))
    assert other.validation is None and holds(other.test, "test")


@pytest.mark.parametrize("kind", [folders.image_folder, folders.image_stream])
def test_only_images_below_the_folders_of_classes_count(folder, kind, monkeypatch):
    pixels = np.full((4, 6, 3), 50, np.uint8)
    save(folder / "train" / ".hidden" / "x.png", pixels)
    save(folder / "val" / ".hidden" / "x.png", pixels)
    save(folder / "train" / "loose.png", pixels)
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    name = os.fsdecode(b"zz\xff.png")  # no text, and yet a name
    save(folder / "train" / "ant" / name, pixels)
    monkeypatch.setenv("HOME", str(folder.parent))
    source = kind(f"~/{folder.name}")
    assert source.classes == ["ant", "bee"]
    assert source.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    if kind is folders.image_folder:
        assert source.train[:][:, 0, 0, 0].tolist() == [50, 0, 1, 2, 10, 11, 12]
    else:
        assert source.train.names.dtype.kind == "S"  # bytes: text would be four times as large
        paths = [source.train.path(row) for row in range(7)]
        assert paths[0] == str(folder / "train" / "ant" / name) and all(map(os.path.exists, paths))
        part = source.train.subset(np.array([0, 6]))
        assert [part.path(0), part.path(1)] == [paths[0], paths[6]] and len(part) == 2
        assert part.labels.tolist() == [0, 1] and part.reading is source.train.reading


def test_every_mode_becomes_rgb(folder):
    ramp = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    rgba = np.dstack([ramp, ramp, ramp, np.full_like(ramp, 128)])
    save(folder / "train" / "ant" / "a_grey.png", ramp)
    save(folder / "train" / "ant" / "a_rgba.png", rgba)
    save(folder / "train" / "ant" / "a_wide.png", ramp.astype(np.uint16) * 257)
    (folder / "train" / "ant" / "a_palette.png").parent.mkdir(exist_ok=True)
    Image.fromarray(ramp).convert("P").save(folder / "train" / "ant" / "a_palette.png")
    images = folders.image_folder(str(folder)).train[:4]
    for image in images[[0, 1, 2]]:  # a_grey, a_palette, a_rgba in order of name
        np.testing.assert_array_equal(image, np.dstack([ramp] * 3))
    np.testing.assert_array_equal(images[3][..., 0], ramp)  # 16 bits: not clipped at 255


def test_images_of_different_sizes_need_a_size(folder):
    first = folder / "train" / "ant" / "sub0" / "0.png"
    other = folder / "train" / "bee" / "other.png"
    save(other, np.full((9, 5, 3), 50, np.uint8))
    message = f"size must be given, since the images differ: {other} is 5x9, {first} is 6x4"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        folders.image_folder(str(folder))
    assert folders.image_folder(str(folder), size=4).train[:].shape == (7, 4, 4, 3)


@pytest.mark.parametrize("height, width", [(20, 36), (36, 20), (5, 9)])
def test_a_size_takes_the_centre_and_resizes_it_smoothly(folder, height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    save(folder / "train" / "ant" / "a.png", pixels)
    got = folders.image_folder(str(folder), size=10).train[0:1][0]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    centre = torch.from_numpy(pixels[top : top + edge, left : left + edge].astype(np.float32))
    expected = torch.nn.functional.interpolate(
        centre.permute(2, 0, 1)[None], (10, 10), mode="bilinear", antialias=True
    )
    differences = np.abs(got - expected[0].permute(1, 2, 0).numpy())
    assert differences[1:-1, 1:-1].max() <= 1.01  # rounded twice; the edges see what lies beyond


def stays(path):
    """Sets the time of modification, so that the time alone does not tell that a file changed."""
    os.utime(path, ns=(10**18, 10**18))


def test_the_cache_is_used_until_a_file_changes(folder, monkeypatch):
    files = sorted((folder / "train" / "ant").rglob("*.png"))
    for i, file in enumerate(files):  # all of one length, whatever their pixels
        save(file, np.full((4, 6, 3), i, np.uint8), format="PPM")
        stays(file)
    contents = [file.read_bytes() for file in files]

    def values(**options):
        return folders.image_folder(str(folder), **options).train[:3][:, 0, 0, 0].tolist()

    def cached():
        with monkeypatch.context() as patch:
            patch.setattr(folders, "_read_image", None)  # decoding anything would fail
            return values()

    assert values() == cached() == [0, 1, 2]
    (cache,) = (folder / ".cache").iterdir()  # nothing beside it
    assert cache.suffix == ".npy" and np.load(cache).shape == (8, 4, 6, 3)
    with pytest.raises(TypeError):  # the check above would notice
        monkeypatch.setattr(folders, "_read_image", None)
        values(size=4)
    monkeypatch.undo()
    # another size of image
    assert [folders.image_folder(str(folder), size=n).train.shape for n in (4, 3)] == [
        (4, 4, 3),
        (3, 3, 3),
    ]
    assert cached() == [0, 1, 2]
    # another name: the first becomes the last
    files[0].parent.rename(files[0].parents[1] / "sub3")
    assert values() == cached() == [1, 2, 0]
    # another time, later by a billionth of a second
    files[1].write_bytes(contents[0])
    os.utime(files[1], ns=(10**18, 10**18 + 1))
    assert values() == cached() == [0, 2, 0]
    # another length of a file
    files[2].write_bytes(contents[0] + b" ")
    stays(files[2])
    assert values() == cached() == [0, 0, 0]


def test_a_cache_that_was_never_filled_is_made_again(folder):
    folders.image_folder(str(folder))
    (cache,) = (folder / ".cache").iterdir()
    whole = cache.read_bytes()
    cache.write_bytes(b"")
    assert folders.image_folder(str(folder)).train[:][5, 0, 0, 0] == 12
    assert cache.read_bytes() == whole


def test_a_folder_that_cannot_be_written_gets_no_cache(folder, caplog, monkeypatch):
    def fails_half_way(file, pixels):
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fails_half_way)
        assert folders.image_folder(str(folder)).train[:][5, 0, 0, 0] == 12
    assert "the decoded images are not cached: no space left" in caplog.text
    assert list((folder / ".cache").iterdir()) == []
    (folder / ".cache").rmdir()
    (folder / ".cache").write_text("a file")
    assert folders.image_folder(str(folder)).train[:][5, 0, 0, 0] == 12
    assert (folder / ".cache").read_text() == "a file"


def test_images_have_to_leave_a_third_of_the_memory(folder, monkeypatch):
    def has(total):
        memory = SimpleNamespace(total=total)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    has(863)  # 8 images of 72 bytes need 1.5 times 576
    with pytest.raises(ValueError, match=r"^root holds 8 images that need 0\.0 GB of"):
        folders.image_folder(str(folder))
    assert not (folder / ".cache").exists()
    has(864)
    folders.image_folder(str(folder))
    size = next((folder / ".cache").iterdir()).stat().st_size
    has(size // 2 * 3)  # exactly enough for what the cache holds
    assert len(folders.image_folder(str(folder)).train) == 6
    has(size // 2 * 3 - 1)
    with pytest.raises(ValueError, match=r"^root holds 8 images that need 0\.0 GB of"):
        folders.image_folder(str(folder))
    has(699_999 * 4096)
    message = (
        "root holds 7 images that need 2.0 GB of memory; this machine has 2.9 GB: choose a smaller "
        "size, or dataset=image_stream, which reads them from the disk again and again"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        cache.check_memory(7, 2_000_000_000)


def test_decoding_in_processes_equals_decoding_in_one(folder):
    for i in range(150):
        save(folder / "train" / "ant" / f"{i}.png", np.full((4, 6, 3), i, np.uint8))
    files = sorted((folder / "train").rglob("*.png"))
    one, two = (folders._decode_files(files, None, workers) for workers in (1, 2))
    assert (one == two).all()
    assert (one == np.stack([np.asarray(Image.open(file)) for file in files])).all()


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda f: (f / "train/bee/sub0/0.png").write_bytes(b"x"), r"cannot be read: .*0\.png"),
        (lambda f: (f / "train/cat").mkdir(), r"class without images in train/.*cat"),
        (lambda f: (f / "val/cat").mkdir(), r"classes in val/ that train/ has not: \['cat'\]"),
        (lambda f: (f / "val").rename(f / "valid"), "must hold a folder test/ or val/ beside"),
        (lambda f: (f / "train").rename(f / "training"), "must hold a folder train/ with"),
        (lambda f: (f / "val/bee").rename(f / "val/.bee"), r"in val/, missing: \['bee'\]"),
        (lambda f: [shutil.rmtree(d) for d in f.glob("*/*")], r"per class in train/, it has none"),
    ],
)
def test_a_broken_folder_is_one_clear_error(folder, break_it, message):
    break_it(folder)
    with pytest.raises(ValueError, match=f"^root .*{message}"):
        folders.image_folder(str(folder))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"root .*nowhere.* is not a folder"):
        folders.image_folder(str(tmp_path / "nowhere"))


def test_images_that_are_only_counted_are_not_read(folder, monkeypatch):
    token = LISTING.set(True)
    try:
        read = []
        first = folders._read_image
        monkeypatch.setattr(folders, "_read_image", lambda *a: read.append(a) or first(*a))
        data = prepare(folders.image_folder(str(folder), size=4), 1, "channel", seed=0)
    finally:
        LISTING.reset(token)
    assert len(read) == 1 and not (folder / ".cache").exists()
    assert (len(data.train), len(data.validation), len(data.test)) == (5, 1, 2)
    assert data.image_shape == (3, 4, 4) and data.normalization is None


def test_decoding_shows_that_it_lives(folder, monkeypatch, caplog):
    monkeypatch.setattr(readers, "TELL_SECONDS", -1.0)
    caplog.set_level("INFO")
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    folders.image_folder(str(folder))
    assert [r.getMessage() for r in caplog.records] == [
        f"decoding 8 images of {folder} once",
        "decoded 8 of 8 images",
    ]


def test_what_begins_with_a_dot_is_no_image(folder):
    before = {
        kind: kind(str(folder)).train for kind in (folders.image_folder, folders.image_stream)
    }
    ant = folder / "train" / "ant"
    (ant / "._0.png").write_bytes(bytes(4096))  # of a Mac
    shutil.copytree(ant / "sub0", ant / ".ipynb_checkpoints")
    for kind, train in before.items():
        assert kind(str(folder)).train.labels.tolist() == train.labels.tolist()
    for file in ant.glob("sub*/*.png"):
        file.rename(file.with_name(f".{file.name}"))
    for kind in before:
        with pytest.raises(
            ValueError, match=r"^root holds a class without images in train/: .*ant"
        ):
            kind(str(folder))


def swapped(content, at):
    """The content with one bit of one byte turned."""
    content = bytearray(content)
    content[at] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: os.truncate(file, 100),
        lambda file: os.truncate(file, file.stat().st_size - 1),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(swapped(file.read_bytes(), -20)),
        lambda file: file.write_bytes(swapped(file.read_bytes(), 70)),
        lambda file: file.write_bytes(b"no array"),
        lambda file: np.save(file, np.zeros((3, 4, 6, 3), np.uint8)),
        lambda file: np.save(file, np.zeros((8, 4, 6, 3))),
        lambda file: np.save(file, np.array([{}], dtype=object)),
    ],
    ids=[
        "short",
        "a byte",
        "empty",
        "a pixel",
        "its shape",
        "foreign",
        "fewer",
        "floats",
        "objects",
    ],
)
def test_a_damaged_cache_is_made_anew(folder, damage):
    expected = folders.image_folder(str(folder)).train[:]
    (file,) = (folder / ".cache").glob("*.npy")
    damage(file)
    assert (folders.image_folder(str(folder)).train[:] == expected).all()
    assert len(np.load(file)) == 8


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "TEST"])
def test_a_part_under_another_name_is_not_passed_over(folder, name):
    shutil.copytree(folder / "val", folder / name)
    with pytest.raises(ValueError, match=f"holds {name}/, which would not be read: "):
        folders.image_folder(str(folder))
    (folder / name).rename(folder / "notes")
    assert len(folders.image_folder(str(folder)).test) == 2


def test_on_a_terminal_decoding_has_a_bar(folder, monkeypatch):
    from rich import progress

    seen = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    update = progress.Progress.update

    def updated(self, task, completed):
        seen.append((self.tasks[0].total, completed))
        update(self, task, completed=completed)

    monkeypatch.setattr(progress.Progress, "update", updated)
    assert len(folders.image_folder(str(folder)).train) == 6
    assert seen == [(8, 8)]


BOTH = {
    "image_folder": folders.image_folder,
    "image_stream": partial(folders.image_stream, size=4, resize=4),
}
each_kind = pytest.mark.parametrize("kind", BOTH.values(), ids=BOTH)


def content(part):
    """The labels and the images of a part."""
    if isinstance(part, Files):
        reader = Reader(part, None, False)
        return part.labels.tolist(), reader[0, np.arange(len(part))][0].tolist()
    return part.labels.tolist(), part[:].tolist()


@each_kind
def test_bad_images_that_are_left_out_might_as_well_not_be_there(folder, kind, caplog, monkeypatch):
    before = kind(str(folder), on_bad_image="skip")
    monkeypatch.setattr(logging.getLogger("sdnet"), "propagate", True)
    ant, bee = folder / "train" / "ant", folder / "val" / "bee"
    (ant / "0.png").write_bytes(b"")
    (ant / "sub1" / "a.png").write_bytes((ant / "sub1" / "1.png").read_bytes()[:40])
    (ant / "z.jpg").symlink_to("nowhere")
    os.mkfifo(ant / "z.png")
    (bee / "x.png").write_bytes(b"no image")
    for _ in range(2):  # and then from the cache
        caplog.clear()
        source = kind(str(folder), on_bad_image="skip")
        for part in ("train", "test"):
            assert content(getattr(source, part)) == content(getattr(before, part))
        assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
            "train/: 4 of 10 images cannot be read and are left out: 'train/ant/0.png', "
            "'train/ant/z.jpg', 'train/ant/z.png', ...",
            "val/: 1 of 3 images cannot be read and are left out: 'val/bee/x.png'",
        ]
        monkeypatch.setattr(folders, "is_bad", None)
    monkeypatch.undo()
    (bee / "x.png").unlink()
    save(bee / "x.png", np.full((4, 6, 3), 99, np.uint8))  # put right: it counts from now on
    assert len(kind(str(folder), on_bad_image="skip").test) == len(before.test) + 1


@each_kind
def test_a_class_of_bad_images_only_is_named(folder, kind):
    for file in (folder / "val" / "bee").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class without images in val/: \['bee'\]"):
        kind(str(folder), on_bad_image="skip")


@each_kind
def test_what_is_done_with_bad_images_is_one_of_two_things(folder, kind):
    with pytest.raises(ValueError, match=r"^on_bad_image must be one of error, skip, got 'drop'"):
        kind(str(folder), on_bad_image="drop")


def die(files):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_while_it_decodes_ends_the_run(folder, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK", 1)
    with pytest.raises(readers.ReadersLost, match="a process that reads images was lost"):
        readers.read_all(die, [folder] * 4, np.empty(4), workers=2)
