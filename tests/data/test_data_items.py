"""torch's data sets and loaders as data: pictures and arrays recognised by their kind and shape, never guessed."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from byol_jax import ConfigurationError, DataError
from byol_jax.data import IterableLoader, Loader, batch_indices, open_dataset
from byol_jax.data.items import gives_images
from byol_jax.data.sources import ImageWarning
from byol_jax.runs.source import Length, open_source
from tests.shard_files import pictures, write_folder

OPTIONS = {"image_size": 14, "num_channels": 3}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 10, 8, 3), np.uint8)


class Items(torch.utils.data.Dataset):
    """A map-style dataset of what `make` gives for a number."""

    def __init__(self, make, count=12):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        assert type(index) is int
        return self.make(index)


def test_pictures_are_resized_as_files_are(tmp_path):
    found = pictures(12)
    folder = open_dataset(write_folder(tmp_path / "folder", found), **OPTIONS)

    def picture(index):
        return Image.open(io.BytesIO(found[index].data))

    for make in (picture, lambda index: (picture(index), index % 3), lambda index: {"image": picture(index), "n": 1}):
        dataset = open_dataset(Items(make), **OPTIONS)
        np.testing.assert_array_equal(dataset.take([0, 11, 4]), folder.take([0, 11, 4]))
        assert (dataset.image_shape, dataset.evaluation_crop, len(dataset)) == ((16, 16, 3), (14, 14), 12)
    own_size = open_dataset(Items(picture))
    np.testing.assert_array_equal(own_size.take([3]), [np.asarray(picture(3))])
    grey = open_dataset(Items(picture), image_size=14, num_channels=1, fit="contain")
    expected = open_dataset(tmp_path / "folder", image_size=14, num_channels=1, fit="contain")
    np.testing.assert_array_equal(grey.take(range(12)), expected.take(range(12)))


ARRAYS = {
    "channels last": (lambda index: IMAGES[index], IMAGES),
    "a tensor, channels last": (lambda index: torch.from_numpy(IMAGES[index]), IMAGES),
    "grey": (lambda index: IMAGES[index, ..., 0], IMAGES[..., :1]),
    "floats": (lambda index: IMAGES[index] / np.float64(255), (IMAGES / 255).astype(np.float32)),
    "16 bits": (lambda index: IMAGES[index].astype(np.uint16) * 257, IMAGES.astype(np.uint16) * 257),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_keep_their_size_and_numbers(case):
    make, expected = ARRAYS[case]
    dataset = open_dataset(Items(make))
    np.testing.assert_array_equal(dataset.take(range(12)), expected)
    assert dataset.take([0]).dtype == expected.dtype == np.dtype(dataset.dtype)
    assert dataset.image_shape == expected.shape[1:]
    assert dataset.evaluation_crop is None


def test_channels_first_are_recognised_and_said():
    first = Items(lambda index: (torch.from_numpy(IMAGES[index]).permute(2, 0, 1) / 255, index))
    with pytest.warns(ImageWarning, match=r"items of shape \(3, 10, 8\) are taken as \[C, H, W\]"):
        dataset = open_dataset(first)
    np.testing.assert_array_equal(dataset.take(range(12)), IMAGES.astype(np.float32) / 255)
    doubtful = Items(lambda index: np.zeros((13, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"may be 13 × 8 pixels of 8 channels .* say which layout"):
        open_dataset(doubtful)
    assert open_dataset(doubtful, layout="NCHW").image_shape == (8, 8, 13)
    assert open_dataset(doubtful, layout="NHWC").image_shape == (13, 8, 8)


def test_labels_and_the_classes_names():
    pairs = Items(lambda index: (IMAGES[index], index % 2))
    assert open_dataset(pairs, with_labels=True).labels.tolist() == [0, 1] * 6
    pairs.targets, pairs.classes = [index % 3 for index in range(12)], ["a", "b", "c"]  # as torchvision has them
    dataset = open_dataset(pairs, with_labels=True)
    assert (dataset.labels.tolist(), dataset.class_names) == ([0, 1, 2] * 4, ("a", "b", "c"))
    for make in (lambda index: IMAGES[index], lambda index: (IMAGES[index], "cat"), lambda index: (IMAGES[index], -1)):
        with pytest.raises(DataError, match="labels are needed, whole numbers"):
            open_dataset(Items(make), with_labels=True)


def test_items_that_fail_are_replaced_named_and_counted():
    def make(index):
        if index in (3, 5):
            raise OSError(f"truncated {index}")
        return IMAGES[index]

    dataset = open_dataset(Items(make))
    np.testing.assert_array_equal(dataset.take([2, 3, 5]), IMAGES[[2, 4, 6]])
    assert dataset.skipped == (("item #3", "OSError: truncated 3"), ("item #5", "OSError: truncated 5"))


@pytest.mark.parametrize("bad", [0, 39])
def test_a_picture_that_is_cut_short_is_replaced_wherever_it_lies(bad):
    found = pictures(40)

    def make(index):
        return Image.open(io.BytesIO(found[index].data[:900] if index == bad else found[index].data))

    dataset = open_dataset(Items(make, 40), **OPTIONS)
    assert dataset.identity == open_dataset(Items(make, 40), **OPTIONS).identity
    np.testing.assert_array_equal(dataset.take([bad]), dataset.take([(bad + 1) % 40]))
    assert [name for name, _ in dataset.skipped] == [f"item #{bad}"]


def test_a_picture_that_becomes_no_pixels_is_replaced():
    items = Items(lambda index: Image.new("F" if index == 5 else "L", (8, 8), index), 12)
    dataset = open_dataset(items)
    assert dataset.take([5, 6]).tolist() == dataset.take([6, 6]).tolist()
    assert [name for name, _ in dataset.skipped] == ["item #5"]


def test_labels_of_items_that_fail_are_refused_by_name():
    def make(index):
        if index == 5:
            raise OSError("truncated")
        return IMAGES[index], index

    items = Items(make)
    with pytest.raises(DataError, match=r"item #5: OSError: truncated: its label is needed, and can't be had"):
        open_dataset(items, with_labels=True)
    items.targets = list(range(12))
    assert open_dataset(items, with_labels=True).labels.tolist() == list(range(12))
    several = Items(lambda index: (IMAGES[index], [0] * index))
    with pytest.raises(DataError, match="labels are needed, whole numbers"):
        open_dataset(several, with_labels=True)


REFUSED = {
    "another shape": (lambda index: IMAGES[index, index % 2 :], {}, r"items of \(\(.* give images of one shape"),
    "normalised": (lambda index: IMAGES[index] / 100.0 - 1, {}, "values from"),
    "masked": (lambda index: np.ma.masked_less(IMAGES[index], 9), {}, "a masked array"),
    "mixed": (lambda index: IMAGES[index] if index else Image.new("L", (8, 8)), {}, "some items are pictures and some"),
    "another number of channels": (lambda index: IMAGES[index], {"num_channels": 1}, "images of 3 channels"),
    "sizes of pictures": (
        lambda index: Image.new("L", (8 + index, 8)),
        {},
        "pictures differ in size .* give image_size",
    ),
    "two entries": (lambda index: {"image": IMAGES[0], "images": IMAGES[0]}, {}, "give a folder|expected one entry"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_items_that_are_refused(case):
    make, options, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        open_dataset(Items(make), **options).take(range(12))


def test_options_that_have_no_use_are_refused():
    arrays, pictures = Items(lambda index: IMAGES[index]), Items(lambda index: Image.new("L", (8, 8)))
    for source, options in ((arrays, {"fit": "contain"}), (pictures, {"layout": "NCHW"}), (pictures, {"fit": "none"})):
        with pytest.raises(ConfigurationError, match=r"fit|layout"):
            open_dataset(source, image_size=8, **options)


def test_images_that_are_others_each_time_are_said():
    draws = np.random.default_rng(0)
    random = Items(lambda index: draws.integers(0, 256, (8, 8, 3), np.uint8))
    with pytest.warns(ImageWarning, match="item #0 is another image each time .* isn't bit for bit"):
        first = open_dataset(random)
    with pytest.warns(ImageWarning, match="another image"):
        assert open_dataset(random).identity == first.identity
    constant = [open_dataset(Items(lambda index, add=add: IMAGES[index] + np.uint8(add))).identity for add in (0, 0, 1)]
    assert constant[0] == constant[1] != constant[2]


@pytest.mark.parametrize(("count", "chance"), [(12, 0.5), (40, 0.2), (2, 0.5)])
def test_items_that_change_now_and_then_have_one_identity(count, chance):
    draws = np.random.default_rng(0)

    def make(index):
        image = IMAGES[index % 12]
        return image[:, ::-1] if draws.random() < chance else image

    identities = []
    for _ in range(20):
        with pytest.warns(ImageWarning, match="is another image each time"):
            identities.append(open_dataset(Items(make, count)).identity)
    assert identities == [identities[0]] * 20


def test_items_are_asked_for_one_at_a_time():
    inside, most, lock = [], [], threading.Lock()

    def make(index):
        with lock:
            inside.append(index)
            most.append(len(inside))
        image = IMAGES[index].copy()
        with lock:
            inside.remove(index)
        return image

    dataset = open_dataset(Items(make), workers=4)
    np.testing.assert_array_equal(dataset.take(range(12)), IMAGES)
    assert max(most) == 1


def test_the_order_is_the_seeds_and_a_resumed_run_goes_on():
    dataset = open_dataset(Items(lambda index: IMAGES[index]))
    with Loader(dataset, batch_size=4, seed=2, start_step=4, place=lambda batch: batch) as loader:
        for step in (4, 5):
            expected = IMAGES[batch_indices(step, seed=2, count=12, batch_size=4)]
            np.testing.assert_array_equal(next(loader), expected)


def test_what_gives_images_and_what_gives_batches():
    assert gives_images(Items(lambda index: IMAGES[index]))
    assert gives_images(torch.utils.data.TensorDataset(torch.from_numpy(IMAGES)))
    for other in (
        [IMAGES],
        IMAGES,
        {"image": IMAGES},
        "text",
        Items(lambda index: IMAGES),  # whole batches by number
        torch.utils.data.DataLoader(Items(lambda index: IMAGES[index])),
        Items(lambda index: IMAGES[index], count=0),
        object(),
    ):
        assert not gives_images(other)


def source(data, **options):
    fixed = {"image_size": 8, "num_channels": 3, "fit": "cover", "layout": None, "workers": 1, "known": None}
    return open_source(data, Length(2, None, 8), show=False, **(fixed | options))


def test_a_run_takes_a_loader_of_channels_first_and_says_so():
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255, torch.arange(12))
    opened = source(torch.utils.data.DataLoader(tensors, batch_size=8, drop_last=True))
    lines = []
    opened.say_doubts(lines.append)
    assert lines == ["batches of shape (8, 3, 10, 8) are taken as [N, C, H, W], channels first, as torch has them"]
    with opened.loader(start_step=0, seed=0, workers=1, place=lambda batch: batch) as loader:
        np.testing.assert_array_equal(next(loader), IMAGES[:8].astype(np.float32) / 255)
    by_item = source(tensors)
    assert (len(by_item.images), by_item.batch_size) == (12, 8)
    doubtful = [np.zeros((8, 13, 8, 12), np.uint8)]
    with pytest.raises(DataError, match="say which layout"):
        source(doubtful)
    said = source(doubtful, num_channels=13, image_size=8, layout="NCHW")
    assert said.images.layout == "NCHW"
    with pytest.raises(ConfigurationError, match="layout 'HWC'"):
        source(doubtful, layout="HWC")


def test_batches_by_name_and_channels_first_without_a_run():
    first = IMAGES.transpose(0, 3, 1, 2)
    for name in ("image", "images", "pixel_values"):
        with IterableLoader([{name: IMAGES, "label": 1}]) as loader:
            np.testing.assert_array_equal(next(loader), IMAGES)
    with IterableLoader([first], layout="NCHW") as loader:
        np.testing.assert_array_equal(next(loader), IMAGES)
    with IterableLoader([first]) as loader, pytest.raises(ImageWarning, match=r"taken as \[N, C, H, W\]"):
        next(loader)
