"""Where the images of tar shards lie, kept beside a run: used while it is true, and never believed when it isn't."""

import os
import re

import fsspec
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byol_jax.data import open_dataset
from byol_jax.data.shards import tar
from byol_jax.data.shards.find import Shard, find_shards
from byol_jax.data.shards.tar_index import COLUMNS, ShardIndex, encode_indices, read_indices
from byol_jax.runs.source import Length, open_source
from tests.shard_files import members, parts, pictures, write_tar, write_tars

OPTIONS = {"image_size": 14, "num_channels": 3, "with_labels": True, "workers": 1}
FOUND = pictures(14)
NAMES = ["shard-000.tar", "shard-001.tar", "shard-002.tar"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "SETTLED", 0)
    return write_tars(tmp_path / "shards", FOUND)


@pytest.fixture
def kept(root, tmp_path):
    """The list of a first start; the index lies beside it."""
    open_dataset(root, verdict_path=tmp_path / "run" / "images.json", **OPTIONS)
    return tmp_path / "run" / "images.json"


@pytest.fixture
def read(monkeypatch):
    """Names of the shards whose members were gone through."""
    read_entries, names = tar.read_entries, []
    monkeypatch.setattr(
        tar, "read_entries", lambda file: names.append(os.path.basename(file.name)) or read_entries(file)
    )
    return names


def same(first, second):
    for facts in ("names", "identity", "skipped", "remarks", "count"):
        assert getattr(first, facts) == getattr(second, facts)
    assert first.labels.tolist() == second.labels.tolist()
    np.testing.assert_array_equal(first.take(range(len(first))), second.take(range(len(first))))


def test_what_is_kept_is_what_a_new_look_finds(root, read, tmp_path):
    last = write_tar(root / "shard-003.tar", [("a.png", FOUND[0].data), ("a.mask.png", b"a part"), ("a.cls", b"2")])
    whole = last.read_bytes()
    last.write_bytes(whole[:5120] + b"damage".ljust(512) + whole[5120:])
    with pytest.warns(UserWarning, match="aren't used, parts of samples"):
        first = open_dataset(root, verdict_path=tmp_path / "images.json", **OPTIONS)
    assert read == [*NAMES, "shard-003.tar"]
    assert first.skipped
    read.clear()
    with pytest.warns(UserWarning, match="aren't used, parts of samples"):
        again = open_dataset(root, verdict_path=tmp_path / "images.json", **OPTIONS)
    assert read == []
    same(first, again)
    assert first.kept() == again.kept()
    assert again.kept()[".index"] == (tmp_path / "images.index").read_bytes()


def test_a_shard_of_the_same_size_and_time_with_others_inside_is_gone_through(root, kept, read):
    path, content = root / NAMES[1], members(parts(FOUND, 3)[1])
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    write_tar(path, content[3:] + content[:3])
    os.utime(path, ns=(time, time))
    assert path.stat().st_size == size
    read.clear()
    again = open_dataset(root, verdict_path=kept, **OPTIONS)
    assert read == [NAMES[1]]
    same(again, open_dataset(root, **OPTIONS))


def test_a_shard_that_was_changed_just_now_is_not_kept(root, tmp_path, read, monkeypatch):
    monkeypatch.setattr(tar, "SETTLED", 10**12)
    os.utime(root / NAMES[0], (10, 10))
    for _ in range(2):
        open_dataset(root, verdict_path=tmp_path / "images.json", **OPTIONS)
    assert read == [*NAMES, *NAMES[1:]]


def test_somebody_elses_file_of_that_name_stays(root, tmp_path):
    (tmp_path / "images.index").write_bytes(b"vectors of another program")
    open_dataset(root, verdict_path=tmp_path / "images.json", **OPTIONS)
    assert (tmp_path / "images.index").read_bytes() == b"vectors of another program"


texts = st.text(max_size=6)
numbers = st.integers(-1, 2**63 - 1)
indices = st.builds(
    lambda rows, skipped, parts, lost: ShardIndex(
        tuple(name for name, _ in rows),
        np.array([row for _, row in rows], np.int64).reshape(-1, COLUMNS),
        skipped,
        parts,
        lost,
    ),
    st.lists(st.tuples(texts, st.tuples(*[numbers] * COLUMNS)), max_size=5),
    *(st.lists(one, max_size=3).map(tuple) for one in (st.tuples(texts, texts), texts, numbers)),
)


@given(st.dictionaries(texts, st.tuples(st.tuples(numbers, numbers), indices), max_size=4))
def test_any_index_comes_back(tmp_path_factory, shards):
    path = tmp_path_factory.mktemp("kept") / "images.index"
    content = encode_indices((name, stamp, index) for name, (stamp, index) in shards.items())
    path.write_bytes(content)
    again, found = read_indices(path)
    assert (again, list(found)) == (content, list(shards))
    for name, (stamp, index) in shards.items():
        assert found[name][0] == stamp
        assert found[name][1]._replace(places=0) == index._replace(places=0)
        np.testing.assert_array_equal(found[name][1].places, index.places)


@pytest.mark.parametrize("change", ["touched", "other order", "longer", "added"])
def test_a_shard_that_changed_is_gone_through_and_no_other(root, kept, read, change):
    before = open_dataset(root, verdict_path=kept, **OPTIONS)
    images = before.take(range(14))
    read.clear()
    path, content = root / NAMES[1], members(parts(FOUND, 3)[1])
    if change == "touched":
        os.utime(path, (0, 0))
    elif change == "other order":  # of the same size: what was kept would give other images' bytes
        size = path.stat().st_size
        write_tar(path, content[3:] + content[:3])
        assert path.stat().st_size == size
        os.utime(path, (0, 0))
    elif change == "longer":
        write_tar(path, [*content, ("more.txt", b"x" * 20_000)])
    else:
        write_tar(root / "shard-003.tar", members(FOUND[:1]))
    again = open_dataset(root, verdict_path=kept, **OPTIONS)
    assert read == ([NAMES[1]] if change != "added" else ["shard-003.tar"])
    added = (("shard-003.tar/0000.png", "added after the first start"),) if change == "added" else ()
    assert (again.names, again.identity, again.skipped) == (before.names, before.identity, added)
    np.testing.assert_array_equal(again.take(range(14)), images)
    assert again.labels.tolist() == before.labels.tolist()


def test_a_shard_that_is_gone_is_no_longer_in_the_index(root, kept, read):
    (root / NAMES[1]).unlink()
    dataset = open_dataset(root, verdict_path=kept, **OPTIONS | {"with_labels": False})
    assert (read, len(dataset)) == ([], 14)  # the list of the first start holds: others replace what is gone
    kept.with_suffix(".index").write_bytes(dataset.kept()[".index"])
    assert [*read_indices(kept.with_suffix(".index"))[1]] == [NAMES[0], NAMES[2]]


def test_a_damaged_index_is_as_good_as_none_wherever_the_damage_is(root, kept, read):
    path = kept.with_suffix(".index")
    whole = path.read_bytes()
    assert len(read_indices(path)[1]) == 3
    damaged = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(len(whole))]
    damaged += [b"", whole[:-1], whole + b"\0", whole[: len(whole) // 2], b"byoltar1", b"[]"]
    for content in damaged:
        path.write_bytes(content)
        assert read_indices(path) == (b"", {})
    read.clear()
    again = open_dataset(root, verdict_path=kept, **OPTIONS)
    assert read == NAMES
    same(again, open_dataset(root, **OPTIONS))
    assert again.kept()[".index"] == whole
    path.unlink()
    path.mkdir()
    assert open_dataset(root, verdict_path=kept, **OPTIONS).kept()[".index"] == whole


def test_an_index_of_something_else_under_a_whole_checksum_is_as_good_as_none(tmp_path):
    class Odd:
        names, skipped, parts, lost, places = ("a", "b"), (), (), (), np.zeros((1, COLUMNS), np.int64)

    (tmp_path / "images.index").write_bytes(encode_indices([("a.tar", (1, 2), Odd)]))
    assert read_indices(tmp_path / "images.index") == (b"", {})


def test_a_shard_that_could_not_be_read_is_read_the_next_time(root, tmp_path, read, monkeypatch):
    open_shard = Shard.open

    def fail(shard):
        if shard.name == NAMES[1]:
            raise OSError(5, "Input/output error")
        return open_shard(shard)

    with monkeypatch.context() as patch:
        patch.setattr(Shard, "open", fail)
        first = tar.tar_images(find_shards(root))
    assert re.search("Input/output error", first.listing.skipped[0][1])
    (tmp_path / "images.index").write_bytes(first.kept[".index"])
    read.clear()
    again = tar.tar_images(find_shards(root), known=tmp_path / "images.index")
    assert (read, again.listing.skipped, len(again.listing.files)) == ([NAMES[1]], (), 14)


def test_of_shards_at_a_url_nothing_is_kept(root, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/kept", recursive=True)
    dataset = open_dataset("memory://kept/shard-*.tar", verdict_path=tmp_path / "images.json", **OPTIONS)
    assert list(dataset.kept()) == [".json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.json", "shards"]
    memory.rm("/kept", recursive=True)


def test_a_run_keeps_what_a_new_look_found_and_opening_its_data_writes_nothing(root, kept, read, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    index = kept.with_suffix(".index")
    whole = index.read_bytes()
    options = {"image_size": 14, "num_channels": 3, "fit": "cover", "layout": None, "workers": 1, "show": False}
    for damage in (b"", whole[:-1]):
        index.write_bytes(damage)
        source = open_source(root, Length(3, None, 2), known=kept, **options)
        assert index.read_bytes() == damage
        source.write_kept(kept)
        assert index.read_bytes() == whole
    read.clear()
    assert open_source(root, Length(3, None, 2), known=kept, **options).kept()[".index"] == whole
    assert read == []
