"""Safetensors in shards: as Hugging Face splits and reads them, and an index that is trusted with nothing."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_shards import FIRST, INDEX, SECOND, names
from weight_samples import HELD, assert_identical, small_state_dict, state_dicts

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop import load_state_dict, save_state_dict
from interop.files import stored_format
from interop.formats.sharded_file import split


def edit(folder, change):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(change(index)))


@settings(max_examples=40, deadline=None)
@given(state_dict=state_dicts(HELD[".safetensors"]).filter(bool), most=st.integers(1, 300))
def test_a_round_trip_keeps_names_order_types_shapes_and_bits(state_dict, most, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    save_state_dict(folder / "model.safetensors", state_dict, max_shard_bytes=most)
    loaded = load_state_dict(folder / "model.safetensors")
    assert_identical(loaded, state_dict, ordered=INDEX in names(folder))
    assert all(array.flags.owndata and array.flags.writeable for array in loaded.values())
    sizes = [array.nbytes for array in state_dict.values()]
    assert (INDEX in names(folder)) == (len(split(state_dict, most)) > 1) == (sum(sizes) > most and len(sizes) > 1)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), max_size=12), most=st.integers(1, 100))
def test_shards_are_those_of_hugging_face(sizes, most):
    hub = pytest.importorskip("huggingface_hub")
    arrays = {f"layer{number}": np.zeros(size, np.int8) for number, size in enumerate(sizes)}
    theirs = hub.split_state_dict_into_shards_factory(
        arrays,
        get_storage_size=lambda array: array.nbytes,
        get_storage_id=lambda array: None,
        max_shard_size=most,
        filename_pattern="model{suffix}.safetensors",
    )
    assert [shard for shard in theirs.filename_to_tensors.values() if shard] == [
        shard for shard in split(arrays, most) if shard
    ]


@pytest.mark.slow
def test_hugging_faces_reader_reads_what_is_written(shards):
    hub, torch = pytest.importorskip("huggingface_hub"), pytest.importorskip("torch")
    folder, state_dict = shards
    module = torch.nn.Module()
    for name, array in state_dict.items():
        holder, _, leaf = name.partition(".")
        inner = module.get_submodule(holder) if hasattr(module, holder) else torch.nn.Module()
        module.add_module(holder, inner)
        dtype = torch.from_numpy(array).dtype if array.dtype.name != "bfloat16" else torch.bfloat16
        inner.register_buffer(leaf, torch.zeros(array.shape, dtype=dtype))
    hub.load_torch_model(module, folder, strict=True)
    got = {name: tensor.view(torch.uint8).numpy() for name, tensor in module.state_dict().items() if tensor.ndim}
    assert {name: array.tobytes() for name, array in got.items()} == {
        name: array.tobytes() for name, array in state_dict.items() if array.ndim
    }
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in state_dict.values())}
    assert list(index["weight_map"]) == list(state_dict)


@pytest.mark.slow
def test_what_hugging_face_writes_is_read(tmp_path):
    hub, torch = pytest.importorskip("huggingface_hub"), pytest.importorskip("torch")
    module = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    hub.save_torch_model(module, tmp_path, max_shard_size=600)
    assert INDEX in names(tmp_path)
    expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert_identical(load_state_dict(tmp_path), expected, ordered=False)


def test_index_folder_and_the_whole_files_name_mean_the_same(shards):
    folder, state_dict = shards
    for path in (folder, folder / INDEX, folder / "model.safetensors"):
        assert_identical(load_state_dict(path), state_dict)
        assert stored_format(path) == "safetensors-index"
    (folder / INDEX).rename(folder / "renamed")
    assert_identical(load_state_dict(folder / "renamed"), state_dict)


def test_links_of_hugging_faces_cache_are_followed(shards, tmp_path):
    folder, state_dict = shards
    cache = tmp_path / "models--x"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for number, name in enumerate((INDEX, FIRST, SECOND)):
        (folder / name).rename(cache / "blobs" / str(number))
        (cache / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{number}")
    assert_identical(load_state_dict(cache / "snapshots" / "abc"), state_dict)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x.safetensors", "sub/x.safetensors", "a\\b", "/etc/passwd", "C:x", "a\0b", "x" * 300]
)
def test_shards_are_files_of_the_same_folder(name, shards):
    folder, _ = shards
    (folder / "sub").mkdir()
    for place in (folder / "sub", folder.parent):
        (place / "x.safetensors").write_bytes((folder / FIRST).read_bytes())
    edit(folder, lambda index: index | {"weight_map": index["weight_map"] | {"fc.bias": name}})
    with pytest.raises(UnsafeCheckpointError, match="shards outside its folder") as caught:
        load_state_dict(folder)
    assert str(caught.value).isprintable()


def test_links_that_lead_out_are_not_followed(shards):
    folder, _ = shards
    (folder / "sub").mkdir()
    (folder / FIRST).rename(folder / "sub" / "x")
    (folder / FIRST).symlink_to("sub/x")
    with pytest.raises(UnsafeCheckpointError, match=f"outside its folder: '{FIRST}'"):
        load_state_dict(folder)
    (folder / FIRST).unlink()
    (folder / "other").write_bytes((folder / "sub" / "x").read_bytes())
    (folder / FIRST).symlink_to("other")
    assert load_state_dict(folder)


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe", "broken link", "circle"])
def test_all_missing_shards_are_listed_at_once(kind, shards):
    folder, _ = shards
    for name in (FIRST, SECOND):
        (folder / name).unlink()
        if kind == "folder":
            (folder / name).mkdir()
        elif kind == "pipe":
            os.mkfifo(folder / name)
        elif kind != "absent":
            (folder / name).symlink_to(name if kind == "circle" else "nowhere")
    with pytest.raises(CheckpointFormatError, match=f"missing: {FIRST}, {SECOND}$"):
        load_state_dict(folder)


def test_index_and_shards_of_different_sets_are_refused_with_every_name(shards):
    folder, _ = shards
    edit(
        folder,
        lambda index: {"weight_map": {name: at for name, at in index["weight_map"].items() if name != "fc.bias"}},
    )
    with pytest.raises(CheckpointFormatError, match=rf"doesn't name for them: fc\.bias \({SECOND}\)"):
        load_state_dict(folder)
    edit(folder, lambda index: {"weight_map": index["weight_map"] | {"fc.bias": FIRST, "new": SECOND, "more": FIRST}})
    with pytest.raises(CheckpointFormatError, match=r"not in their shards: fc\.bias, more, new; in shards.*fc\.bias"):
        load_state_dict(folder)


def test_a_name_in_two_shards_is_refused(shards):
    folder, _ = shards
    save_state_dict(folder / FIRST, small_state_dict())
    with pytest.raises(CheckpointFormatError, match=rf"doesn't name for them: .*fc\.bias \({FIRST}\)"):
        load_state_dict(folder)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('{"weight_map": {"a": "x", "a": "x"}}', UnsafeCheckpointError, "'a' twice"),
        ('{"weight_map": {}, "weight_map": {}}', UnsafeCheckpointError, "'weight_map' twice"),
        ('{"weight_map": {}}', CheckpointFormatError, "without a weight_map"),
        ('{"weight_map": ["a"]}', CheckpointFormatError, "without a weight_map"),
        ('{"weight_map": {"a": 1}}', CheckpointFormatError, "the name of a file"),
        ('{"model": "config"}', CheckpointFormatError, "without a weight_map"),
        ('{"weight_map": {"a": "x"}', CheckpointFormatError, "no JSON"),
        ("{" + '"a":{' * 100_000, CheckpointFormatError, "JSON"),
    ],
)
def test_what_is_no_index_is_refused(text, error, words, tmp_path):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(error, match=words):
        load_state_dict(tmp_path)


def test_shards_of_other_formats_are_refused(shards):
    folder, state_dict = shards
    save_state_dict(folder / "x.npz", state_dict)
    (folder / "x.npz").rename(folder / FIRST)
    with pytest.raises((CheckpointFormatError, UnsafeCheckpointError), match=FIRST):
        load_state_dict(folder)


def test_which_index_a_folder_means_must_be_clear(shards):
    folder, state_dict = shards
    (folder / "other.safetensors.index.json").write_bytes((folder / INDEX).read_bytes())
    with pytest.raises(CheckpointFormatError, match=f"the indices {INDEX}, other"):
        load_state_dict(folder)
    (folder / "other.safetensors.index.json").unlink()
    save_state_dict(folder / "model.safetensors", state_dict)
    with pytest.raises(CheckpointFormatError, match=f"holds both model.safetensors and {INDEX}"):
        load_state_dict(folder)


def test_max_bytes_counts_all_shards(shards):
    folder, state_dict = shards
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert_identical(load_state_dict(folder, max_bytes=size), state_dict)
    for most in (size - 1, size // 2, 100):
        with pytest.raises(UnsafeCheckpointError, match=f"more than max_bytes={most}"):
            load_state_dict(folder, max_bytes=most)
