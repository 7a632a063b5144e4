"""Tar shards as a dataset: the images that webdataset and a folder give, and nothing lost without a word."""

import io
import re
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from byol_jax import DataError
from byol_jax.data import Loader, open_dataset
from byol_jax.data.shards.tar_entries import read_entries
from byol_jax.data.sources import ImageWarning
from tests.shard_files import members, pictures, png, write_folder, write_tar, write_tars

OPTIONS = {"image_size": 14, "num_channels": 3}


@pytest.fixture
def found():
    return pictures(14)


@pytest.fixture
def root(tmp_path, found):
    return write_tars(tmp_path / "shards", found)


@pytest.mark.parametrize("fit", ["cover", "contain", "none"])
def test_the_images_are_those_of_a_folder_bit_for_bit(root, found, tmp_path, fit):
    folder = open_dataset(write_folder(tmp_path / "folder", found), fit=fit, **OPTIONS)
    shards = open_dataset(root, fit=fit, **OPTIONS)
    np.testing.assert_array_equal(shards.take(range(14)), folder.take(range(14)))
    assert shards.names[:2] == ("shard-000.tar/0000.png", "shard-000.tar/0001.png")
    assert shards.identity["kind"] == "tar"
    for cache_bytes, scan_limit, workers in ((0, 0, 3), (10**6, 0, 1)):
        again = open_dataset(root, fit=fit, cache_bytes=cache_bytes, scan_limit=scan_limit, workers=workers, **OPTIONS)
        np.testing.assert_array_equal(again.take([3, 1, 13]), folder.take([3, 1, 13]))


def read_by_webdataset(root):
    """(png, cls) of each sample; the files are opened here, since WebDataset leaves them open."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for path in sorted(root.glob("*.tar")):
        with path.open("rb") as stream:
            samples = group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
            yield from ((sample["png"], sample["cls"]) for sample in samples)


@pytest.mark.slow
def test_images_and_labels_are_those_that_webdataset_reads(root):
    samples = list(read_by_webdataset(root))
    dataset = open_dataset(root, with_labels=True, num_channels=3)
    theirs = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data, _ in samples])
    np.testing.assert_array_equal(dataset.take(range(len(dataset))), theirs)
    assert dataset.labels.tolist() == [int(label) for _, label in samples]
    assert (dataset.labels.dtype, dataset.class_names) == (np.int32, None)


def test_a_folder_a_file_and_patterns(root, monkeypatch):
    whole = open_dataset(root, **OPTIONS)
    for pattern in ("shard-{000..002}.tar", "shard-*.tar", "shard-00[0-2].tar", "{shard-000,shard-001,shard-002}.tar"):
        dataset = open_dataset(root / pattern, **OPTIONS)
        assert (dataset.names, dataset.identity) == (whole.names, whole.identity), pattern
    assert len(open_dataset(root / "shard-001.tar", **OPTIONS)) == 5
    monkeypatch.chdir(root)
    assert open_dataset("shard-{002..000}.tar", **OPTIONS).identity == whole.identity
    with pytest.raises(DataError, match=r"no such file as 'shard-003.tar'"):
        open_dataset("shard-{000..003}.tar", **OPTIONS)
    with pytest.raises(DataError, match=r"no such file as 'train-\*.tar'"):
        open_dataset("train-*.tar", **OPTIONS)


def test_shards_beside_images_are_said_to_be_left_out(root, found, tmp_path):
    write_folder(root / "assets", found[:1])
    dataset = open_dataset(root, **OPTIONS)
    assert dataset.names == ("assets/0000.png",)
    assert dataset.skipped[0][0] == "shards"
    assert dataset.skipped[0][1].startswith("3 shards, 'shard-000.tar' for one, aren't read beside 1 images")
    (root / "assets" / "0000.png").unlink()
    np.save(root / "labels.npy", np.arange(14))
    assert len(open_dataset(root, **OPTIONS)) == 14
    (root / "1.dcm").write_bytes(b"a scan, beside somebody's backups")
    with pytest.raises(DataError, match=r"1 of 1 images can't be used \('1.dcm'"):
        open_dataset(root, **OPTIONS)
    (tmp_path / "dir" / "folder.tar").mkdir(parents=True)
    with pytest.raises(DataError, match="no file in it is named as an image"):
        open_dataset(tmp_path / "dir", **OPTIONS)


def test_a_start_later_gives_the_rest_of_the_batches(root):
    def batches(start, end, workers):
        with Loader(
            open_dataset(root, **OPTIONS),
            batch_size=4,
            seed=5,
            start_step=start,
            workers=workers,
            place=lambda batch: batch,
        ) as loader:
            return [next(loader) for _ in range(start, end)]

    whole = batches(0, 8, 2)
    np.testing.assert_array_equal(whole[5:], batches(5, 8, 1))
    with Loader(open_dataset(root, **OPTIONS), batch_size=4, seed=6, place=lambda batch: batch) as other:
        assert (next(other) != whole[0]).any()


def test_long_names_and_every_form_of_tar(tmp_path, found):
    names = [f"{'deep/' * 30}{'n' * 90}{number}.png" for number in range(3)] + ["é 日本.png", "./dot.png", "/root.png"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(
            tmp_path / f"{form}.tar", list(zip(names, [one.data for one in found], strict=False)), form=form
        )
        dataset = open_dataset(path, **OPTIONS)
        wanted = sorted(f"{form}.tar/{name.removeprefix('./').lstrip('/')}" for name in names)
        assert list(dataset.names) == wanted


def test_a_sample_has_one_image(tmp_path, found):
    one, two, three = (picture.data for picture in found[:3])
    path = write_tar(tmp_path / "a.tar", [("0.jpg.txt", b"text"), ("0.PNG", one), ("0.seg.png", two), ("1.png", three)])
    with pytest.warns(ImageWarning, match=r"1 members named as images aren't used.* the first: 'a.tar/0.seg.png'"):
        assert open_dataset(path, **OPTIONS).names == ("a.tar/0.PNG", "a.tar/1.png")
    dated = [("2024.05.01.png", one), ("2024.05.02.png", two)]  # a tar of photos that isn't WebDataset's
    assert len(open_dataset(write_tar(tmp_path / "b.tar", dated), **OPTIONS)) == 2
    both = write_tar(tmp_path / "c.tar", [("0.png", one), ("0.jpg", two)])
    with pytest.raises(DataError, match=r"c.tar: sample '0' has 2 images, '0.png' and '0.jpg'"):
        open_dataset(both, **OPTIONS)


def test_what_is_no_image_is_named_and_counted(tmp_path, found):
    data = found[0].data
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("0.png", data),
            ("1.png", b"no picture"),
            ("0.png", data),
            ("2.heic", data),
            ("._0.png", b"mac"),
            ("3.png", data),
            ("5.png", data),
            ("6.png", data),
        ],
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("4.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        archive.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with tarfile.open(path) as archive:
        second = archive.getmembers()[2].offset_data
    dataset = open_dataset(path, **OPTIONS)
    assert dataset.names == tuple(f"a.tar/{number}.png" for number in (0, 3, 5, 6))
    assert dict(dataset.skipped) == {
        f"a.tar#{second}": "a second member named '0.png'",
        "a.tar/1.png": "not an image, or damaged at its start",
        "a.tar/2.heic": "images of this kind aren't read",
        "a.tar/4.png": "a link to '0.png', not an image's bytes",
    }


@pytest.mark.parametrize(
    ("contents", "complaint"),
    {
        "no label": ([("0.png", None), ("1.png", None), ("1.cls", b"1")], r"1 of 2 images have none .*'a.tar/0.png'"),
        "a word": (
            [("0.png", None), ("0.cls", b"cat")],
            r"the .cls beside 'a.tar/0.png' holds b'cat': expected a",
        ),
        "below zero": ([("0.png", None), ("0.cls", b"-1")], r"holds b'-1'"),
        "no label in .json": ([("0.png", None), ("0.json", b'{"caption": "a cat"}')], r"1 of 1 images have none"),
        "a word in .json": (
            [("0.png", None), ("0.json", b'{"label": "cat"}')],
            r"the .json beside 'a.tar/0.png' holds 'cat': expected a whole number, 0 or more, as its \"label\"",
        ),
        "true in .json": ([("0.png", None), ("0.json", b'{"label": true}')], r"holds True"),
        "damaged .json": ([("0.png", None), ("0.json", b'{"label": 3')], r"holds b'{\"label\": 3': expected"),
        "deep .json": ([("0.png", None), ("0.json", b"[" * 10**5)], r"holds b'\[+: expected"),
        "a list in .json": ([("0.png", None), ("0.json", b"[3]")], r"holds \[3\]: expected"),
    }.values(),
)
def test_labels_that_arent_there_are_refused(tmp_path, found, contents, complaint):
    filled = [(name, found[0].data if data is None else data) for name, data in contents]
    path = write_tar(tmp_path / "a.tar", filled)
    assert open_dataset(path, **OPTIONS).labels is None
    with pytest.raises(DataError, match=complaint):
        open_dataset(path, with_labels=True, **OPTIONS)
    without = open_dataset(path, with_labels=None, **OPTIONS)
    assert (without.labels, len(without.notes)) == (None, 1)
    assert without.notes[0].startswith("no labels: ")
    assert re.search(complaint, without.notes[0])


def test_labels_are_in_cls_or_else_in_json(tmp_path, found):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("0.json", b'{"label": 7}'),
            ("0.png", found[0].data),
            ("0.CLS", b"3\n"),
            ("1.png", found[1].data),
            ("1.json", b'{"label": 5, "caption": "\xc3\xa9"}'),
        ],
    )
    for with_labels in (True, None):
        dataset = open_dataset(path, with_labels=with_labels, **OPTIONS)
        assert (dataset.labels.tolist(), dataset.labels.dtype, dataset.notes) == ([3, 5], np.int32, ())


def header_of(path, name):
    with tarfile.open(path) as archive:
        return archive.getmember(name).offset


def test_a_damaged_header_loses_its_member_alone(root, found, tmp_path):
    path = root / "shard-001.tar"
    content = bytearray(path.read_bytes())
    at = header_of(path, "0007.png")
    content[at + 10] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(root, **OPTIONS)
    assert "shard-001.tar/0007.png" not in dataset.names
    assert dataset.skipped == ((f"shard-001.tar#{at}", "damaged: members may be lost"),)
    rest = write_folder(tmp_path / "folder", [one for one in found if one.key != "0007"])
    np.testing.assert_array_equal(dataset.take(range(13)), open_dataset(rest, **OPTIONS).take(range(13)))


def test_a_shard_that_is_cut_short_loses_what_is_behind(root):
    path = root / "shard-001.tar"
    path.write_bytes(path.read_bytes()[: header_of(path, "0008.png") + 600])
    dataset = open_dataset(root, **OPTIONS)
    assert len(dataset) == 13 - 1
    assert ("shard-001.tar/0008.png", "cut short: the shard ends before") in dataset.skipped


def test_shards_that_are_no_tar_are_refused_where_none_is(tmp_path, root):
    (root / "shard-001.tar").write_bytes(b"no tar at all" * 100)
    assert ("shard-001.tar#0", "damaged: members may be lost") in open_dataset(root, **OPTIONS).skipped
    (tmp_path / "empty.tar").touch()
    write_tar(tmp_path / "text.tar", [("a.txt", b"text")])
    (tmp_path / "noise.tar").write_bytes(b"noise" * 1000)
    for name, complaint in {
        "empty.tar": "no member is named as one",
        "text.tar": "no member is named as one",
        "noise.tar": r"'noise.tar#0': damaged",
    }.items():
        with pytest.raises(DataError, match=f"no image can be had of 1 tar file .*{complaint}"):
            open_dataset(tmp_path / name, **OPTIONS)


def test_compressed_shards_are_refused_by_name(tmp_path, found):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    for source in ("a.tar.gz", "{a,b}.tar.gz", "*.tar.gz"):
        with pytest.raises(DataError, match=r"compressed shard|no such file as"):
            open_dataset(tmp_path / source, **OPTIONS)


def test_tars_one_behind_the_other_are_read_to_the_end(tmp_path, found):
    first, second = (write_tar(tmp_path / f"{part}.tar", members(found[part : part + 7])) for part in (0, 7))
    whole = tmp_path / "whole.tar"
    whole.write_bytes(first.read_bytes() + second.read_bytes())
    dataset = open_dataset(whole, **OPTIONS)
    assert (len(dataset), dataset.skipped) == (14, ())


def test_shards_that_have_changed_are_no_longer_those_of_the_run(root, tmp_path):
    kept = tmp_path / "images.json"
    before = open_dataset(root, verdict_path=kept, **OPTIONS)
    assert open_dataset(root, verdict_path=kept, **OPTIONS).identity == before.identity
    write_tar(root / "shard-003.tar", [("0099.png", png(np.zeros((4, 4, 3), np.uint8)))])
    again = open_dataset(root, verdict_path=kept, **OPTIONS)
    assert (again.identity, again.skipped) == (
        before.identity,
        (("shard-003.tar/0099.png", "added after the first start"),),
    )
    write_tars(root, pictures(14, size=(30, 30)))
    with pytest.raises(DataError, match=r"14 of the 14 images .* have another size than at the first start"):
        open_dataset(root, verdict_path=kept, **OPTIONS)


CONTENTS = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=120), st.binary()),
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=40)
@given(CONTENTS, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_entries_are_tarfiles_own(contents, form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in contents:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    entries = list(read_entries(buffer))
    assert [entry.name for entry in entries] == [name for name, _ in contents]
    whole = buffer.getvalue()
    assert [whole[one.offset : one.offset + one.size] for one in entries] == [data for _, data in contents]
    assert {entry.reason for entry in entries} <= {None}
