"""Arrays, array files and the embedded images; what is refused, and that the message says what to do."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import byol_jax
import interop
from byol_jax import ConfigurationError, DataError
from byol_jax.data import arrays as arrays_module
from byol_jax.data import embedded, evaluation_images, open_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 6, 3), np.uint8)


def test_bytes_come_back_as_they_are():
    dataset = open_dataset(IMAGES)
    assert dataset.image_shape == (8, 6, 3)
    assert (len(dataset), dataset.labels, dataset.names, dataset.skipped) == (10, None, None, ())
    np.testing.assert_array_equal(dataset.take([3, 3, 9]), IMAGES[[3, 3, 9]])
    np.testing.assert_array_equal(dataset.take(np.arange(10) > 7), IMAGES[8:])
    assert dataset.take([]).shape == (0, 8, 6, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_floats_come_back_as_float32(dtype):
    images = (IMAGES / 255).astype(dtype)
    taken = open_dataset(images).take([1, 2])
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, images[[1, 2]].astype(np.float32))


def test_a_jax_array_is_an_array():
    np.testing.assert_array_equal(open_dataset(jnp.asarray(IMAGES)).take([4]), IMAGES[[4]])
    assert isinstance(open_dataset(jax.device_put(IMAGES)).take([4]), np.ndarray)


def test_rank_three_is_one_channel():
    dataset = open_dataset(IMAGES[..., 0], num_channels=1)
    assert dataset.image_shape == (8, 6, 1)
    np.testing.assert_array_equal(dataset.take([2]), IMAGES[[2], :, :, :1])


def test_what_is_taken_can_be_written_to():
    images = IMAGES.copy()
    open_dataset(images).take([0])[:] = 0
    np.testing.assert_array_equal(images, IMAGES)


REFUSED = {
    "range": (IMAGES.astype(np.float32), None, r"float32 values from 0.0 to 255.0, expected floats in \[0, 1\]"),
    "negative": (IMAGES / 255 - 0.5, None, r"float64 values from -0.5 to 0.5"),
    "nan": (np.full((2, 4, 4, 1), np.nan, np.float32), None, "values from nan to nan"),
    "int64": (IMAGES.astype(np.int64), None, "dtype int64 with values 0 to 255, expected uint8"),
    "text": (np.full((2, 4, 4, 1), "x"), None, "dtype <U1, expected uint8"),
    "channels": (IMAGES, 1, r"images of 3 channels \(shape \(10, 8, 6, 3\)\), but num_channels is 1"),
    "channels first": (np.zeros((5, 3, 8, 8), np.uint8), 3, r"channels first: give \[N, H, W, C\], array.transpose"),
    "13 bands first": (
        np.zeros((5, 13, 8, 24), np.uint8),
        13,
        r"channels first: give .*, or say layout NCHW \(--layout",
    ),
    "rank": (np.zeros((5, 8), np.uint8), None, r"shape \(5, 8\), expected \[N, H, W, C\]"),
    "empty": (np.zeros((0, 8, 8, 3), np.uint8), None, "with at least one image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_numbers_are_refused_with_what_was_seen(case):
    images, num_channels, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        open_dataset(images, num_channels=num_channels)


AMBIGUOUS = [(13, 24, 24), (8, 8, 8), (9, 9, 200), (4, 6, 6), (32, 64, 32), (3, 3, 3), (1, 24, 3)]
AMBIGUOUS += [(200, 64, 64), (64, 32, 32), (48, 32, 32), (100, 10, 10), (512, 7, 7), (512, 3, 3), (512, 1, 1)]
LAST = [(24, 24, 13), (8, 6, 3), (120, 160, 13), (224, 224, 200), (28, 28, 1), (2, 3, 1), (2, 2, 3), (5, 4, 1)]


@pytest.mark.parametrize("shape", AMBIGUOUS)
def test_a_shape_that_could_be_either_layout_is_asked_about(shape):
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    first, second, third = shape
    asked = rf"may be {first} × {second} pixels of {third} channels \(NHWC\) or {second} × {third} pixels of {first} "
    with pytest.raises(DataError, match=asked + r"channels \(NCHW\): say which layout \(--layout, layout=\)"):
        open_dataset(images)
    np.testing.assert_array_equal(open_dataset(images, layout="NHWC").take(range(5)), images)
    last = open_dataset(images, layout="NCHW")
    np.testing.assert_array_equal(last.take(range(5)), images.transpose(0, 2, 3, 1))
    assert last.identity == open_dataset(images.transpose(0, 2, 3, 1).copy(), layout="NHWC").identity


@pytest.mark.parametrize("shape", LAST)
def test_channels_last_need_no_question_where_nothing_else_can_be_meant(shape):
    images = np.zeros((5, *shape), np.uint8)
    assert open_dataset(images).image_shape == shape
    assert open_dataset(images, num_channels=shape[-1]).image_shape == shape


def test_a_known_number_of_channels_settles_the_layout():
    images = np.zeros((5, 13, 24, 24), np.uint8)
    assert open_dataset(images, num_channels=24).image_shape == (13, 24, 24)
    with pytest.raises(DataError, match="has its channels first: give"):
        open_dataset(images, num_channels=13)
    assert open_dataset(images, num_channels=13, layout="NCHW").image_shape == (24, 24, 13)
    with pytest.raises(DataError, match=r"images of 24 channels .* num_channels is 13"):
        open_dataset(images, num_channels=13, layout="NHWC")


def test_maps_of_many_channels_are_settled_by_their_number():
    images = np.zeros((5, 64, 32, 32), np.uint8)
    assert open_dataset(images, num_channels=32).image_shape == (64, 32, 32)
    with pytest.raises(DataError, match="has its channels first: give"):
        open_dataset(images, num_channels=64)
    assert open_dataset(images, num_channels=64, layout="NCHW").image_shape == (32, 32, 64)


@pytest.mark.parametrize("shape", [(64, 64, 3), (8, 6, 1), (8, 8, 1), (20, 30, 4)])
def test_one_image_or_many_grey_ones_is_asked(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    count, height, width = shape
    asked = (
        rf"may be {count} grey images of {height} × {width} pixels or one of {count} × {height} pixels and {width} "
        r"channels: give array\[..., None\] or array\[None\]"
    )
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy"):
        for num_channels in (None, 3):
            with pytest.raises(DataError, match=asked):
                open_dataset(source, num_channels=num_channels)
        assert open_dataset(source, num_channels=1).image_shape == (height, width, 1)
    assert open_dataset(array[..., None], layout="NHWC").image_shape == (height, width, 1)
    assert open_dataset(array[None]).image_shape == shape


@pytest.mark.parametrize("shape", [(64, 64, 200), (28, 28, 5)])
def test_a_stack_with_its_number_last_is_asked_about(shape):
    array = np.zeros(shape, np.uint8)
    side, _, count = shape
    with pytest.raises(DataError, match=rf"may be {side} grey images of {side} × {count} pixels or {count} of {side}"):
        open_dataset(array)
    assert len(open_dataset(np.moveaxis(array, -1, 0))) == count
    assert len(open_dataset(array[..., None], layout="NHWC")) == side


@pytest.mark.parametrize("mask", [False, True])
def test_masked_arrays_are_refused(mask):
    images = np.ma.masked_array(IMAGES / 255, mask=False)
    images.data[0] = 1e20
    images[0] = np.ma.masked if mask else 0.5
    for source in (images, (images, np.arange(10)), np.ma.masked_array(IMAGES, mask=mask)):
        with pytest.raises(DataError, match=r"array: a masked array, .* fill it first, .filled\(0\)"):
            open_dataset(source)
    with pytest.raises(DataError, match="array: labels: a masked array"):
        open_dataset((IMAGES, np.ma.masked_array(np.arange(10), mask=mask)))
    assert open_dataset(images.filled(0)).take([0]).max() == (0 if mask else 0.5)


def test_masked_weights_are_refused_too(tmp_path):
    weights = {"0.weight": np.ma.masked_array([1.0, 1e20], [0, 1])}
    like = byol_jax.Variables({"0": {"scale": np.zeros(2, np.float32)}}, {})
    calls = {
        "hash": lambda: interop.open_weights(weights).sha256,
        "leaves": lambda: interop.from_torch_state_dict(weights, like=like),
        "file": lambda: interop.save_state_dict(tmp_path / "x.safetensors", weights),
    }
    for call in calls.values():
        with pytest.raises(interop.CheckpointFormatError, match=r"0.weight: a masked array: fill it first, .filled"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_layouts_of_files_are_views(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 10), np.uint8)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6))
    for name in ("a.npy", "a.npz"):
        dataset = open_dataset(tmp_path / name, layout="NCHW")
        np.testing.assert_array_equal(dataset.take([4, 1]), images[[4, 1]].transpose(0, 2, 3, 1))
    assert open_dataset(np.zeros((4, 8, 6), np.uint8), layout="NCHW").image_shape == (8, 6, 1)  # no axis to ask about
    for source, layout in (("fashion-mnist", "NCHW"), (images, "CHWN")):
        with pytest.raises(ConfigurationError, match=f"layout '?{layout}"):
            open_dataset(source, layout=layout)


@pytest.mark.parametrize("source", [[IMAGES], {"images": IMAGES}, 7, None, (IMAGES, 1, 2)])
def test_things_that_are_no_source_are_refused(source):
    with pytest.raises(DataError, match="give a folder"):
        open_dataset(source)


def test_labels_follow_their_images():
    dataset = open_dataset((IMAGES, np.arange(10, dtype=np.uint8)), with_labels=True)
    assert dataset.labels.dtype == np.int32
    assert dataset.labels[[7, 2]].tolist() == [7, 2]


@pytest.mark.parametrize("labels", [np.arange(9), np.eye(10), np.linspace(0, 1, 10)])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(DataError, match=r"expected one whole number for each image, shape \(10,\)"):
        open_dataset((IMAGES, labels))


def test_labels_that_are_needed_and_absent():
    with pytest.raises(DataError, match="labels are needed"):
        open_dataset(IMAGES, with_labels=True)


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y"), ("x_train", "y_train")])
def test_npz_by_its_usual_names(tmp_path, images, labels):
    np.savez(tmp_path / "a.npz", **{images: IMAGES, labels: np.arange(10)})
    dataset = open_dataset(str(tmp_path / "a.npz"), with_labels=True)
    np.testing.assert_array_equal(dataset.take(range(10)), IMAGES)
    assert dataset.labels.tolist() == list(range(10))


def test_npz_without_names_and_with_strange_ones(tmp_path):
    np.savez_compressed(tmp_path / "a.NPZ.npz", IMAGES)
    np.testing.assert_array_equal(open_dataset(tmp_path / "a.NPZ.npz").take([0]), IMAGES[:1])
    np.savez(tmp_path / "b.npz", pictures=IMAGES)
    with pytest.raises(DataError, match="holds pictures; name the images 'images'"):
        open_dataset(tmp_path / "b.npz")


def test_npy_is_mapped_not_read(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    images, labels = arrays_module.read_array_file(tmp_path / "a.npy")
    assert isinstance(images, np.memmap)
    assert labels is None
    taken = open_dataset(tmp_path / "a.npy").take([5])
    assert not isinstance(taken, np.memmap)
    np.testing.assert_array_equal(taken, IMAGES[[5]])


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a file was run",))


def test_nothing_is_ever_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "c.npz", images=np.array([Bomb()], dtype=object))
    for name in ("a.npy", "b.npy", "b.npz", "c.npz"):
        with pytest.raises(DataError, match="can't be read as a NumPy file of plain numbers"):
            open_dataset(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_files(tmp_path, name):
    whole = tmp_path / name
    np.savez(whole, images=IMAGES) if name.endswith("z") else np.save(whole, IMAGES)
    content = whole.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"text"):
        whole.write_bytes(damaged)
        with pytest.raises(DataError, match="can't be read as a NumPy file"):
            open_dataset(whole)


def test_paths_that_lead_nowhere_suggest_the_nearest_name(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.png").touch()
    (tmp_path / "table.csv").touch()
    messages = {
        "photoss": f"no such folder or file: did you mean {tmp_path / 'photos'}",
        "quite different": "no such folder or file: give a folder of images",
        "photo.png": "is a single image: give the folder",
        "table.csv": "is neither a folder of images nor",
        "x" * 5000: "no such folder or file",
    }
    for name, message in messages.items():
        with pytest.raises(DataError) as raised:
            open_dataset(tmp_path / name)
        assert message in str(raised.value)
    with pytest.raises(DataError, match="did you mean fashion-mnist"):
        open_dataset("fashion_mnist")
    with pytest.raises(DataError, match="an empty name"):
        open_dataset("")


@pytest.mark.parametrize("options", [{"workers": 0}, {"image_size": 0}, {"image_size": (3,)}, {"image_size": 2.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigurationError):
        open_dataset(IMAGES, **options)


def test_identity_tells_numbers_apart_and_is_json(monkeypatch):
    identity = open_dataset(IMAGES).identity
    assert json.loads(json.dumps(identity)) == identity == open_dataset(IMAGES.copy()).identity
    changed = IMAGES.copy()
    changed[4, 4, 4, 1] ^= 1
    assert open_dataset(changed).identity["sha256"] != identity["sha256"]
    assert open_dataset(IMAGES.reshape(10, 6, 8, 3)).identity["sha256"] != identity["sha256"]
    monkeypatch.setattr(arrays_module, "_LOOKED_AT", IMAGES.nbytes // 3)  # larger data: three images of ten are hashed
    assert open_dataset(changed).identity["count"] == 10


def test_evaluation_leaves_arrays_of_the_right_size_alone_and_resizes_others():
    dataset = open_dataset(IMAGES)
    np.testing.assert_array_equal(evaluation_images(dataset, [1, 2], (8, 6)), IMAGES[1:3])
    resized = evaluation_images(dataset, [1], (4, 12))
    expected = Image.fromarray(IMAGES[1]).resize((12, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resized[0], np.asarray(expected))
    floats = evaluation_images(open_dataset(IMAGES / 255), [1], (4, 12))
    assert floats.dtype == np.float32
    assert np.abs(floats * 255 - resized).max() <= 1


def test_the_embedded_images():
    images, labels = embedded.fashion_mnist()
    assert (images.shape, images.dtype, labels.dtype) == ((10_000, 28, 28, 1), np.uint8, np.int32)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    dataset = open_dataset("fashion-mnist", num_channels=1, with_labels=True)
    assert dataset.class_names[9] == "Ankle boot"
    np.testing.assert_array_equal(dataset.take([0, 9999]), images[[0, 9999]])
    with pytest.raises(DataError, match=r"images of 1 channels .* num_channels is 3"):
        open_dataset("fashion-mnist", num_channels=3)


def test_damaged_embedded_files_are_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz cannot be read \(No such file .*: install"):
        embedded.fashion_mnist(folder=tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is damaged \(sha256"):
        embedded.fashion_mnist(folder=tmp_path)
