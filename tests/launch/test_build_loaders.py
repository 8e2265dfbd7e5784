"""What a run starts from: from a composed configuration to the numbers in a batch."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sdnet.config.errors import ConfigError
from sdnet.data.loader import Loader
from sdnet.data.split import Files, Reading, Split
from sdnet.data.streaming import StreamingLoader
from sdnet.launch.build import (
    build_data,
    build_loaders,
    build_model,
    build_trainer,
    check_batches,
    eval_batch_size,
)
from sdnet.models.resnet import resnet_cifar
from sdnet.processes import stand_apart
from sdnet.training.distributed import World
from tests.config.composed import composed
from tests.data.keyed import philox, torch_seed

COUNTS = {"train": 22, "val": 3, "test": 9}  # in batches of 8: 8, 8, 6; 3; 8, 1
CPU = torch.device("cpu")
IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def write(root, size_of):
    """Images of noise in two classes; returns those of each part in their order, with labels."""
    random, written = np.random.default_rng(0), {}
    for part, count in COUNTS.items():
        images = []
        for i in range(count):
            label, (h, w) = int(i >= count // 2), size_of(i)
            small = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            path = root / part / "ab"[label] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = small.resize((w, h))
            image.save(path)
            images.append((np.array(image), label))
        written[part] = images
    return written


def config_of(dataset, root, *overrides):
    overrides = [f"dataset.root={root}", "seed=7", "trainer.batch_size=8", *overrides]
    return composed(f"dataset={dataset}", "trainer.workers=0", *overrides)


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A configuration, and the images it is about: all 7x6."""
    root = tmp_path_factory.mktemp("memory")
    images = write(root, lambda i: (7, 6))
    return config_of("image_folder", root, "dataset.shift=2", "dataset.flip=true"), images


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """A configuration, and the images it is about: all of different shapes, both ways."""
    root = tmp_path_factory.mktemp("stream")
    images = write(root, lambda i: (30 + 2 * i, 40 + i))
    options = (
        "dataset.size=16",
        "dataset.resize=20",
        "dataset.scale=[0.3,0.6]",
        "dataset.validation=0.1",
    )
    return config_of("image_stream", root, *options), images


def loaders_of(config, world=World(), dataset=None, trainer=None):  # noqa: B008
    config = copy.deepcopy(config)
    config["dataset"] |= dataset or {}
    config["trainer"] |= trainer or {}
    return build_loaders(config, build_data(config), CPU, world)


def joined(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images).permute(0, 2, 3, 1).numpy(), torch.cat(labels).tolist()


def sizes(batches):
    return [len(labels) for _, labels in batches]


def order_of(epoch, count=22):
    return philox(7, "order", epoch).permutation(count)


# -- in memory ------------------------------------------------------------------------------------


def normalised(images, train):
    train = np.stack([image for image, _ in train]).astype(float)
    mean = train.mean(0)
    std = ((train - mean) ** 2).mean() ** 0.5
    return [(image - mean) / std for image, _ in images]


def moved(image, down, right, flip):
    """Mirrored left to right, then moved; zeros come in."""
    h, w, c = image.shape
    large = np.zeros((3 * h, 3 * w, c))
    large[h + down : 2 * h + down, w + right : 2 * w + right] = image[:, ::-1] if flip else image
    return large[h : 2 * h, w : 2 * w]


@pytest.mark.parametrize("shift, flip", [(2, True), (2, False), (0, True), (0, False)])
def test_training_images_in_memory_are_moved_and_mirrored_as_their_settings_say(
    memory, shift, flip
):
    config, images = memory
    train = loaders_of(config, dataset={"shift": shift, "flip": flip})["train"]
    assert type(train) is Loader and len(train) == 3
    pixels = normalised(images["train"], images["train"])
    all_drawn = []
    for epoch in (0, 3):
        order, expected = order_of(epoch), []
        for i in range(3):
            rows = order[8 * i : 8 * i + 8]
            random = philox(7, "augment", 3 * epoch + i)
            down, right = random.integers(-shift, shift + 1, (2, len(rows)))
            flips = random.random(len(rows)) < (0.5 if flip else 0)
            drawn = list(zip(down, right, flips, strict=True))
            expected += [moved(pixels[row], *d) for row, d in zip(rows, drawn, strict=True)]
            all_drawn += drawn
        batches = list(train.batches(epoch))
        assert sizes(batches) == [8, 8, 6]
        got, labels = joined(batches)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        assert labels == [images["train"][row][1] for row in order]
    found = [set(values) for values in zip(*all_drawn, strict=True)]  # all that is possible
    assert found == [set(range(-shift, shift + 1))] * 2 + [{False, flip}]


def test_a_loop_over_the_loader_is_its_first_epoch_and_another_seed_another_epoch(memory, stream):
    for config, _ in (memory, stream):
        train = loaders_of(config)["train"]
        first, again = joined(train), joined(train.batches(0))
        assert (first[0] == again[0]).all() and first[1] == again[1]
        other, _ = joined(loaders_of(config | {"seed": 8})["train"])
        assert not (first[0] == other).all()


def test_images_in_memory_that_a_run_is_measured_on_are_as_they_are_and_in_order(memory):
    config, images = memory
    loaders = loaders_of(config)
    assert set(loaders) == {"train", "validation", "test"}
    for name, part in (("validation", "val"), ("test", "test")):
        expected = normalised(images[part], images["train"])
        for epoch in (0, 3):
            got, labels = joined(loaders[name].batches(epoch))
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
            assert labels == [label for _, label in images[part]]
    assert sizes(loaders["test"]) == [8, 1] and sizes(loaders["validation"]) == [3]
    assert set(loaders_of(config, dataset={"validation": 0})) == {"train", "test"}


# -- streamed -------------------------------------------------------------------------------------


def for_training(image, epoch, row, scale=(0.3, 0.6), color=0.4, lighting=0.1, flip=True):
    """An image as a network trains on it: (16, 16, 3), in the order of the paper's recipe."""
    image = torch.from_numpy(image).permute(2, 0, 1)
    with torch.random.fork_rng():
        torch_seed(7, "augment", epoch, row)
        box = v2.RandomResizedCrop(16, scale=scale).make_params([image])
        flip = flip and torch.rand(()) < 0.5
        brightness, contrast, saturation = (1 + color * (2 * torch.rand(3) - 1)).tolist()
        noise = (lighting * torch.randn(3)).numpy()
    crop = v2.functional.resized_crop(image, **box, size=[16, 16]).permute(1, 2, 0).numpy()
    crop = (crop[:, ::-1] if flip else crop) / 255
    luma = np.array([0.299, 0.587, 0.114])
    crop = brightness * crop
    mean = (crop @ luma).mean()
    crop = contrast * crop + (1 - contrast) * mean
    crop = saturation * crop + (1 - saturation) * (crop @ luma)[..., None]
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    crop = crop + vectors @ (np.array([0.2175, 0.0188, 0.0045]) * noise)
    return (crop - IMAGENET[0]) / IMAGENET[1]


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"flip": False},
        {"color": 0},
        {"lighting": 0},
        {"color": 0, "lighting": 0},
        {"color": 1.0, "lighting": 1.0},
        {"scale": [1.0, 1.0]},
    ],
)
def test_streamed_training_images_are_changed_as_their_settings_say(stream, setting):
    config, images = stream
    train = loaders_of(config, dataset=setting)["train"]
    assert type(train) is StreamingLoader and len(train) == 3
    for epoch in (0, 3):
        order = order_of(epoch).tolist()
        batches = list(train.batches(epoch))
        assert sizes(batches) == [8, 8, 6]
        got, labels = joined(batches)
        expected = [for_training(images["train"][row][0], epoch, row, **setting) for row in order]
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
        assert labels == [images["train"][row][1] for row in order]


@pytest.mark.parametrize("size, resize", [(16, 20), (16, 16), (24, 32)])
def test_streamed_images_that_a_run_is_measured_on_are_resized_and_cropped(stream, size, resize):
    config, images = stream
    loaders = loaders_of(config, dataset={"size": size, "resize": resize})
    assert set(loaders) == {"train", "validation", "test"}
    for name, part in (("validation", "val"), ("test", "test")):
        expected = []
        for image, _ in images[part]:
            h, w, _ = image.shape
            shape = [int(resize * h / min(h, w)), int(resize * w / min(h, w))]
            resized = v2.functional.resize(torch.from_numpy(image).permute(2, 0, 1), shape)
            top, left = (round((edge - size) / 2) for edge in shape)
            crop = resized.permute(1, 2, 0).numpy()[top : top + size, left : left + size]
            expected.append((crop / 255 - IMAGENET[0]) / IMAGENET[1])
        for epoch in (0, 3):
            got, labels = joined(loaders[name].batches(epoch))
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
            assert labels == [label for _, label in images[part]]
    assert sizes(loaders["test"]) == [8, 1]
    assert set(loaders_of(config, dataset={"validation": 0})) == {"train", "test"}


# -- both -----------------------------------------------------------------------------------------


def test_the_shares_of_the_processes_together_are_the_batches_of_one(memory, stream):
    for config, _ in (memory, stream):
        alone = loaders_of(config)
        for ranks in (2, 3):
            each = [loaders_of(config, World(rank, ranks)) for rank in range(ranks)]
            for name, loader in alone.items():
                assert {len(one[name]) for one in each} == {len(loader)}
                shares = []
                for rank, one in enumerate(each):
                    batches = list(one[name].batches(1))
                    counts = [
                        n * (rank + 1) // ranks - n * rank // ranks
                        for n in sizes(loader.batches(1))
                    ]
                    if type(loader) is StreamingLoader:  # skips a batch of which it has no image
                        counts = [n for n in counts if n]
                    assert sizes(batches) == counts
                    empty = (torch.empty(0, 3, *batches[0][0].shape[2:]), torch.empty(0))
                    shares.append(batches + [empty] * (len(loader) - len(batches)))
                for whole, *parts in zip(loader.batches(1), *shares, strict=True):
                    images, labels = zip(*parts, strict=True)
                    assert torch.equal(torch.cat(labels).long(), whole[1])
                    # the sums of a batch's matrices are rounded as its size has it
                    torch.testing.assert_close(torch.cat(images), whole[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_of_all_batches_is_the_trainers(memory, stream, channels_last):
    for config, _ in (memory, stream):
        loaders = loaders_of(config, trainer={"channels_last": channels_last})
        for loader in loaders.values():
            images, labels = next(iter(loader))
            assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
            assert images.is_contiguous() != channels_last
            assert images.dtype == torch.float32 and labels.dtype == torch.int64


def test_evaluations_have_a_batch_size_of_their_own(memory, stream):
    for config, _ in (memory, stream):
        for own, expected in ((None, [8, 1]), (5, [5, 4]), (20, [9])):
            loaders = loaders_of(config, trainer={"eval_batch_size": own})
            assert sizes(loaders["test"]) == expected
            assert loaders["train"].batch_size == 8


@pytest.mark.parametrize(
    ("device", "own", "edge", "expected"),
    [
        ("cpu", None, 32, 128),
        ("cpu", 7, 32, 7),
        ("cuda", None, 8, 1024),
        ("cuda:1", None, 32, 1024),
        ("cuda", None, 64, 256),
        ("cuda", None, 224, 128),  # one of a batch of training, for which there is memory
        ("cuda", 7, 32, 7),
    ],
)
def test_on_cuda_evaluations_of_small_images_in_memory_have_large_batches(
    device, own, edge, expected
):
    settings, device = {"batch_size": 128, "eval_batch_size": own}, torch.device(device)
    images = np.zeros((2, edge, edge, 3), np.uint8)
    assert eval_batch_size(settings, Split(images, np.arange(2)), device) == expected
    files = Files("somewhere", np.zeros(2, "S1"), np.arange(2), Reading(edge, edge))
    assert eval_batch_size(settings, files, device) == (own or 128)


@pytest.mark.parametrize("workers", [0, 1, None])
def test_the_processes_that_read_are_set_up_as_the_trainer_says(stream, workers, monkeypatch):
    monkeypatch.setattr("sdnet.data.streaming.default_workers", lambda: 2)
    monkeypatch.setattr("sdnet.data.streaming.BATCHES_AHEAD", 3)  # torch's own default is 2
    loaders = loaders_of(stream[0], trainer={"workers": workers})
    count = 2 if workers is None else workers
    for name, loader in loaders.items():
        reader = loader.reader
        assert reader.num_workers == count and reader.worker_init_fn is stand_apart
        assert reader.batch_size is None and reader.pin_memory is False
        assert reader.prefetch_factor == (3 if count else None)
        # evaluation is seldom: its processes would lie idle
        assert reader.persistent_workers is (name == "train" and count > 0)
        if count:
            assert reader.multiprocessing_context.get_start_method() == "fork"


def test_images_for_a_gpu_are_read_into_pinned_memory(stream, monkeypatch):
    data = build_data(stream[0])
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)  # as if there were one
    loader = StreamingLoader(data.train, data.normalization, 8, "cuda", seed=0)
    assert loader.reader.pin_memory is True


def test_a_run_takes_its_split_from_its_seed_and_names_a_mistake_by_its_setting():
    config = composed("seed=7", "dataset.size=8")
    data = build_data(config)
    order = philox(7, "split").permutation(1437)
    everything = build_data(composed("dataset.validation=0", "dataset.size=8")).train.indices
    assert (data.validation.indices == everything[np.sort(order[:144])]).all()  # 143.7 of 1,437
    assert (data.train.indices == everything[np.sort(order[144:])]).all()
    config["dataset"]["validation"] = 1437
    with pytest.raises(ConfigError, match=r"^dataset\.validation=1437 of 1437 training"):
        build_data(config)


@pytest.mark.parametrize("accumulate, processes", [(1, 1), (1, 3), (4, 1), (3, 2)])
def test_each_part_of_a_mini_batch_has_two_images(accumulate, processes):
    least = 2 * accumulate * processes
    for size in (least, least + 1):
        trainer = {"batch_size": size, "accumulate": accumulate}
        check_batches({"trainer": trainer}, 10 * size, processes)
    trainer = {"batch_size": least - 1, "accumulate": accumulate}
    message = (
        rf"batch_size must be {least} or more for accumulate={accumulate} and {processes} "
        rf"process\(es\), so that each part has two images, got {least - 1}"
    )
    with pytest.raises(ConfigError, match=message):
        check_batches({"trainer": trainer}, 10 * (least - 1), processes)


def test_a_trainer_is_not_built_for_processes_that_have_too_few_images(monkeypatch):
    config = composed("dataset.size=8", "trainer.batch_size=7", "trainer.device=cpu")
    two = World(0, 2)
    monkeypatch.setattr(World, "one_first", lambda self: nullcontext())  # no other one is there
    config["trainer"]["accumulate"] = 2
    message = "must be 8 or more for accumulate=2 and 2 process"
    with pytest.raises(ConfigError, match=message):
        build_trainer(config, None, two)
    config["trainer"] |= {"accumulate": 1, "batch_size": 4}
    message = "batch_size=4 leaves 1 of 1293 training images .* too few for 2 processes"
    with pytest.raises(ConfigError, match=message):
        build_trainer(config, None, two)


def test_the_seed_alone_decides_what_a_network_starts_from():
    def weights(seed):
        torch.rand(1)  # the state of torch's own generator does not matter
        config = composed(f"seed={seed}", "model.depth=8")
        return torch.cat([p.flatten() for p in build_model(config, 10, 1).parameters()])

    first, again, other = weights(7), weights(7), weights(8)
    assert torch.equal(first, again) and not torch.equal(first, other)
    with torch.random.fork_rng():
        torch_seed(7, "init")
        network = resnet_cifar(8, in_channels=1)
    assert torch.equal(first, torch.cat([p.flatten() for p in network.parameters()]))
    for classes, channels in ((7, 3), (10, 1)):
        network = build_model(composed("model.depth=8"), classes, channels)
        assert network.fc.out_features == classes and network.conv1.in_channels == channels
