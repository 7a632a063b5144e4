"""A folder as a dataset: names, order, labels, the verdict that is kept, and the size of its images."""

import json
import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol_jax import ConfigurationError, DataError
from byol_jax.data import evaluation_images, open_dataset
from byol_jax.data.files import survey
from byol_jax.data.readers import picture as picture_module
from byol_jax.runs.config import encode_config
from byol_jax.runs.pictures import views_grid


def write(folder, name, value=100, shape=(20, 20)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for number, name in enumerate(
        ["zebra/a.png", "ant/deep/er/b.JPG", "ant/c.Jpeg", "bee/d.bmp", "bee/e.tiff", "bee/f.gif"]
    ):
        write(root, name, 10 * number)
    (root / "notes.txt").write_text("not looked at")
    (root / "bee/._f.gif").write_text("what macOS leaves")
    return root


NAMES = ("ant/c.Jpeg", "ant/deep/er/b.JPG", "bee/d.bmp", "bee/e.tiff", "bee/f.gif", "zebra/a.png")


def test_names_are_sorted_and_images_follow_them(folder):
    dataset = open_dataset(folder, image_size=14, num_channels=1)
    assert dataset.names == NAMES
    assert (len(dataset), dataset.count, dataset.image_shape) == (6, 6, (16, 16, 1))
    assert np.abs(dataset.take(range(6))[:, 3, 3, 0].astype(int) - [20, 10, 30, 40, 50, 0]).max() <= 1  # JPEG
    assert dataset.take([5, 0, 5]).shape == (3, 16, 16, 1)
    assert dataset.take([]).shape == (0, 16, 16, 1)
    with pytest.raises(IndexError):
        dataset.take([6])


def test_labels_are_the_first_level_folders_in_order(folder):
    dataset = open_dataset(folder, image_size=14, with_labels=True)
    assert dataset.class_names == ("ant", "bee", "zebra")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert dataset.labels.dtype == np.int32
    without = open_dataset(folder, image_size=14)
    assert (without.labels, without.class_names) == (None, None)


def test_a_class_keeps_its_number_when_its_images_are_bad(folder):
    (folder / "ape").mkdir()
    (folder / "ape/bad.png").touch()
    assert open_dataset(folder, image_size=14, with_labels=True).labels.tolist() == [0, 0, 2, 2, 2, 3]


def test_labels_need_every_image_in_a_class_folder(folder):
    write(folder, "stray.png")
    with pytest.raises(DataError, match=r"1 images lie outside of them \(the first: 'stray.png'\): move"):
        open_dataset(folder, image_size=14, with_labels=True)


def test_workers_and_the_cache_change_nothing(folder):
    options = {"image_size": 14, "num_channels": 3}
    expected = open_dataset(folder, workers=1, cache_bytes=0, **options).take([3, 1, 0, 2, 5, 4, 3])
    for workers in (1, 3):
        for cache_bytes in (0, 10**6):
            for scan_limit in (0, 100):
                dataset = open_dataset(
                    folder, workers=workers, cache_bytes=cache_bytes, scan_limit=scan_limit, **options
                )
                np.testing.assert_array_equal(dataset.take([3, 1, 0, 2, 5, 4, 3]), expected)


def count_reads(monkeypatch):
    read, names = picture_module.read_image, []
    monkeypatch.setattr(picture_module, "read_image", lambda path, **o: names.append(path.name) or read(path, **o))
    return names


def test_what_fits_in_memory_is_decoded_once(folder, monkeypatch):
    names = count_reads(monkeypatch)
    dataset = open_dataset(folder, image_size=14)
    dataset.take([0, 1, 2, 3, 4, 5, 0])
    assert len(names) == 6
    small = open_dataset(folder, image_size=14, cache_bytes=6 * 16 * 16 * 3 - 1)
    small.take([0, 1])
    assert len(names) == 6 + 6 + 2


def test_what_is_taken_can_be_written_to(folder):
    dataset = open_dataset(folder, image_size=14)
    before = dataset.take([0]).copy()
    dataset.take([0])[:] = 0
    np.testing.assert_array_equal(dataset.take([0]), before)


def test_progress_counts_every_file(folder):
    seen = []
    open_dataset(folder, image_size=14, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]  # the TIFF is looked at before: it may hold several images


def test_a_kept_verdict_spares_the_scan_and_keeps_the_list(folder, tmp_path, monkeypatch):
    (folder / "bad.jpg").touch()
    path = tmp_path / "run" / "images.json"
    first = open_dataset(folder, image_size=14, verdict_path=path, with_labels=False)
    names = count_reads(monkeypatch)
    write(folder, "aaa_new.png")
    again = open_dataset(folder, image_size=14, verdict_path=path)
    assert (again.names, again.identity, names) == (first.names, first.identity, [])
    assert again.skipped == (("bad.jpg", "empty file"), ("aaa_new.png", "added after the first start"))
    np.testing.assert_array_equal(again.take(range(6)), first.take(range(6)))
    (folder / NAMES[2]).unlink()
    gone = open_dataset(folder, image_size=14, verdict_path=path)
    assert gone.names == first.names
    np.testing.assert_array_equal(gone.take([2]), first.take([3]))


def test_a_verdict_of_another_folder_or_damaged_is_refused(folder, tmp_path):
    path = tmp_path / "images.json"
    open_dataset(folder, image_size=14, verdict_path=path)
    write(tmp_path / "other", "x.png")
    with pytest.raises(DataError, match="holds only 0 of the 6 images"):
        open_dataset(tmp_path / "other", image_size=14, verdict_path=path)
    path.write_text('{"format": 3}')
    with pytest.raises(DataError, match="can't be read: delete it"):
        open_dataset(folder, image_size=14, verdict_path=path)


@pytest.mark.parametrize("changed", [1, 6])
def test_a_verdict_on_images_of_other_sizes_in_bytes_is_refused(folder, tmp_path, changed):
    path = tmp_path / "images.json"
    first = open_dataset(folder, image_size=14, verdict_path=path)
    sizes = [(folder / name).stat().st_size for name in NAMES]
    os.utime(folder / NAMES[0], (0, 0))  # a copy has another time
    assert open_dataset(folder, image_size=14, verdict_path=path).identity == first.identity
    for name in NAMES[6 - changed :]:
        write(folder, name, 7, (90, 31))
    name, then = NAMES[6 - changed], sizes[6 - changed]
    now = (folder / name).stat().st_size
    said = rf"{changed} of the 6 images that .* \(the first: '{name}', {then} bytes then, {now} now\): put back"
    if changed == 1:
        (folder / "ant/c.Jpeg").unlink()  # one that is gone is replaced, as ever
    before = path.read_bytes()
    with pytest.raises(DataError, match=said):
        open_dataset(folder, image_size=14, verdict_path=path)
    assert path.read_bytes() == before


def test_identity_is_of_names_and_sizes_not_of_the_place(folder, tmp_path):
    identity = open_dataset(folder, image_size=14).identity
    assert (identity["kind"], identity["count"]) == ("folder", 6)
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert open_dataset(moved, image_size=28).identity == identity
    os.rename(moved / "zebra", moved / "yak")
    assert open_dataset(moved, image_size=14).identity != identity


def test_links_are_followed_and_loops_end(folder, tmp_path):
    write(tmp_path / "elsewhere", "g.png")
    (folder / "cat").symlink_to(tmp_path / "elsewhere")
    (folder / "bee/loop").symlink_to("..")
    dataset = open_dataset(folder, image_size=14)
    assert set(dataset.names) == {*NAMES, "cat/g.png"}
    assert dataset.skipped == (("bee/loop", "a link to a folder that was read under another name"),)


def test_without_an_image_size_images_keep_theirs(tmp_path):
    for number in range(3):
        write(tmp_path, f"{number}.png", number, (12, 18))
    dataset = open_dataset(tmp_path, num_channels=1)
    assert dataset.image_shape == (12, 18, 1)
    assert dataset.take([2]).tolist() == np.full((1, 12, 18, 1), 2).tolist()
    assert evaluation_images(dataset, [2], (12, 18)).tolist() == dataset.take([2]).tolist()
    write(tmp_path, "x.png", 3, (12, 17))
    with pytest.raises(DataError, match=r"'x.png' is 12 × 17, the first is 12 × 18\): give image_size"):
        open_dataset(tmp_path)


def test_evaluation_takes_the_centre_of_what_training_loads(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a/1.png")
    dataset = open_dataset(tmp_path, image_size=56, num_channels=1)  # loaded at 64: the file's own size
    np.testing.assert_array_equal(evaluation_images(dataset, [0], 56)[0, ..., 0], pixels[4:60, 4:60])
    assert evaluation_images(dataset, [0], (28, 14)).shape == (1, 28, 14, 1)


def test_mixed_kinds_of_colour_become_one(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        Image.new(mode, (20, 20)).save(tmp_path / f"{mode.replace(';', '')}.png")
    for mode in ("CMYK", "RGB", "L"):
        Image.new(mode, (20, 20)).save(tmp_path / f"{mode}.jpg")
    for channels in (1, 3):
        dataset = open_dataset(tmp_path, image_size=14, num_channels=channels)
        assert dataset.skipped == ()
        assert dataset.take(range(10)).shape == (10, 16, 16, channels)
    with pytest.raises(DataError, match=r"10 of 10 images can't be used .* channel.* where 4 are wanted"):
        open_dataset(tmp_path, image_size=14, num_channels=4)


def test_a_folder_without_images_says_what_it_found(tmp_path):
    with pytest.raises(DataError, match="it is empty"):
        open_dataset(tmp_path)
    (tmp_path / "table.csv").touch()
    with pytest.raises(DataError, match=r"no file in it is named as an image .*: it holds 'table.csv'"):
        open_dataset(tmp_path)


def test_hidden_folders_and_those_of_systems_hold_no_images_and_are_no_class(folder):
    before = open_dataset(folder, image_size=14, num_channels=1, with_labels=True)
    left = [".ipynb_checkpoints", "__MACOSX/ant", "bee/.ipynb_checkpoints", "zebra/@eaDir", ".hidden/deep"]
    for number, name in enumerate(left):
        write(folder, f"{name}/x{number}.png")
    after = open_dataset(folder, image_size=14, num_channels=1, with_labels=True)
    assert (after.names, after.class_names, after.identity) == (before.names, before.class_names, before.identity)
    assert after.labels.tolist() == before.labels.tolist()
    reason = "a hidden folder or a system's own: not entered"
    names = (".hidden", ".ipynb_checkpoints", "__MACOSX", "bee/.ipynb_checkpoints", "zebra/@eaDir")
    assert after.skipped == tuple((name, reason) for name in names)
    assert len(open_dataset(folder / ".hidden", image_size=14)) == 1  # asked for by its name
    write(folder, ".hidden/deep/.x/a.png")
    (folder / ".hidden/deep/x4.png").unlink()
    with pytest.raises(DataError, match=r"no file in it is named as an image .*: it holds 'deep/.x'"):
        open_dataset(folder / ".hidden", image_size=14)


def test_hidden_files_are_left_out_and_named(folder):
    before = open_dataset(folder, image_size=14, with_labels=True)
    hidden = (".trash.png", "ant/.y.heic", "bee/.x.jpg", "new/.only.png")
    for name in hidden:
        write(folder, "plain.png")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / "plain.png").rename(folder / name)
    (folder / "bee/._f.gif").write_text("what macOS leaves")
    (folder / ".notes").write_text("no image")
    after = open_dataset(folder, image_size=14, with_labels=True)
    assert (after.names, after.class_names, after.identity) == (before.names, before.class_names, before.identity)
    reason = "a hidden file: rename it to use it"
    assert after.skipped == tuple(
        (name, reason) for name in (".trash.png", "ant/.y.heic", "bee/.x.jpg", "new/.only.png")
    )
    for number in range(30):  # they don't count as bad ones
        (folder / f".{number}.png").touch()
    assert len(open_dataset(folder, image_size=14)) == 6
    with pytest.raises(DataError, match=r"no file in it is named as an image .*: it holds '.only.png'"):
        open_dataset(folder / "new", image_size=14)


def make_run(root, name, *, config=None):
    write(root, f"{name}/views.png", 77)
    write(root, f"{name}/exported/deep.png", 78)
    content = encode_config({"steps": 1}) if config is None else config
    (root / name / "config.json").write_bytes(content)


def test_folders_of_our_own_runs_hold_no_images_and_are_no_class(folder):
    before = open_dataset(folder, image_size=14, num_channels=1, with_labels=True)
    make_run(folder, "first")
    make_run(folder, "bee/runs/second")
    after = open_dataset(folder, image_size=14, num_channels=1, with_labels=True)
    assert (after.names, after.class_names, after.identity) == (before.names, before.class_names, before.identity)
    reason = "a run's folder of byol_jax: not entered"
    assert after.skipped == (("bee/runs/second", reason), ("first", reason))
    assert len(open_dataset(folder / "first", image_size=14)) == 2  # asked for by its name


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"format": "x"}', b"[" * 5000, b"\xff\xfe"])
def test_a_config_of_somebody_else_marks_no_run(folder, content):
    make_run(folder, "theirs", config=content)
    dataset = open_dataset(folder, image_size=14)
    assert ("theirs/views.png" in dataset.names, dataset.skipped) == (True, ())


def test_pictures_that_we_drew_are_no_images(folder):
    before = open_dataset(folder, image_size=14)
    views = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
    for name in ("look.png", "bee/views.png"):
        views_grid(views, views, views, folder / name)
    for scan_limit in (100, 1):
        after = open_dataset(folder, image_size=14, scan_limit=scan_limit)
        assert (after.names, after.identity) == (before.names, before.identity)
        reason = "a picture that byol_jax drew of images and their views: not used"
        assert after.skipped == (("bee/views.png", reason), ("look.png", reason))


@pytest.mark.parametrize("names", [(".old/a.png", ".old/b.png"), (".a.png", "bee/.b.png"), ("run/a.png", "run/b.png")])
def test_a_run_that_saw_what_is_left_out_today_goes_on_with_it(folder, tmp_path, names):
    for value, name in zip((5, 6), names, strict=True):
        write(folder, name, value)
    if names[0].startswith("run"):
        make_run(folder, "run")
    path = tmp_path / "images.json"
    files = [[name, (folder / name).stat().st_size] for name in names]
    path.write_text(json.dumps({"format": "byol_jax verdict on a folder of images, 1", "files": files, "skipped": []}))
    dataset = open_dataset(folder, image_size=14, num_channels=1, verdict_path=path)
    assert dataset.take([0, 1])[:, 0, 0, 0].tolist() == [5, 6]


def test_images_with_names_that_are_not_read_are_counted_and_named(folder):
    for name in ("a.jfif", "bee/b.HEIC", "ant/c.ppm", "d.jp2", "only/e.avif", "._f.heic", "g.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    dataset = open_dataset(folder, image_size=14, with_labels=True)
    assert dataset.names == NAMES
    assert dataset.class_names == ("ant", "bee", "zebra")
    assert dict(dataset.skipped) == {
        "a.jfif": "images named .jfif aren't read: rename it to .jpg",
        "ant/c.ppm": "images named .ppm aren't read: convert it to .png, .tif or .jpg",
        "bee/b.HEIC": "images named .heic aren't read: convert it to .png, .tif or .jpg",
        "d.jp2": "images named .jp2 aren't read: convert it to .png, .tif or .jpg",
        "only/e.avif": "images named .avif aren't read: convert it to .png, .tif or .jpg",
    }
    for number in range(30):  # they don't count as bad ones
        (folder / f"{number}.heic").touch()
    assert len(open_dataset(folder, image_size=14)) == 6
    with pytest.raises(DataError, match=r"no file in it is named as an image .*: it holds 'e.avif'"):
        open_dataset(folder / "only", image_size=14)


def wide_and_tall(root):
    """A ramp from left to right, 40 × 160 pixels, and one from top to bottom, 160 × 40."""
    ramp = np.linspace(1, 255, 160).astype(np.uint8)[None].repeat(40, 0)
    Image.fromarray(ramp).save(root / "a.png")
    Image.fromarray(ramp.T).save(root / "b.png")
    return ramp


def resized(pixels, height, width):
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def test_cover_is_the_default_and_keeps_the_centre(tmp_path):
    ramp = wide_and_tall(tmp_path)
    found = open_dataset(tmp_path, image_size=28, num_channels=1).take([0, 1])
    np.testing.assert_array_equal(
        found, open_dataset(tmp_path, image_size=28, num_channels=1, fit="cover").take([0, 1])
    )
    expected = Image.fromarray(ramp).resize((32, 32), Image.Resampling.BILINEAR, box=(60, 0, 100, 40))
    np.testing.assert_array_equal(found[0, ..., 0], np.asarray(expected))
    np.testing.assert_array_equal(found[1], found[0].transpose(1, 0, 2))


def test_contain_shows_the_whole_picture_on_black(tmp_path):
    ramp = wide_and_tall(tmp_path)
    dataset = open_dataset(tmp_path, image_size=28, num_channels=1, fit="contain")
    found = dataset.take([0, 1])[..., 0]
    expected = np.zeros((32, 32), np.uint8)
    expected[12:20] = resized(ramp, 8, 32)
    np.testing.assert_array_equal(found, [expected, expected.T])
    whole = evaluation_images(dataset, [0], 28)[0, ..., 0]  # nothing of it is cut off
    np.testing.assert_array_equal(whole, resized(expected, 28, 28))


def test_none_cuts_nothing_off_and_does_not_distort_pictures_of_one_shape(tmp_path):
    ramp = wide_and_tall(tmp_path)
    squared = open_dataset(tmp_path, image_size=28, num_channels=1, fit="none")  # between 4:1 and 1:4
    np.testing.assert_array_equal(squared.take([0])[0, ..., 0], resized(ramp, 32, 32))
    (tmp_path / "b.png").unlink()
    long = open_dataset(tmp_path, image_size=28, num_channels=1, fit="none")
    assert long.image_shape == (32, 128, 1)
    np.testing.assert_array_equal(long.take([0])[0, ..., 0], resized(ramp, 32, 128))
    cover = open_dataset(tmp_path, image_size=28, num_channels=1)
    apart = evaluation_images(long, [0], 28).astype(int) - evaluation_images(cover, [0], 28)
    assert np.abs(apart).max() <= 1  # an evaluation sees the centre, whatever training sees


def test_a_very_long_shape_keeps_within_four_times_the_area(tmp_path):
    Image.fromarray(np.linspace(0, 255, 900).astype(np.uint8)[None].repeat(9, 0)).save(tmp_path / "a.png")
    dataset = open_dataset(tmp_path, image_size=28, num_channels=1, fit="none")
    assert dataset.image_shape == (6, 640, 1)
    assert np.ptp(dataset.take([0])) > 250
    assert evaluation_images(dataset, [0], 28).shape == (1, 28, 28, 1)


def test_the_common_shape_is_kept_with_the_list(tmp_path):
    folder, path = tmp_path / "images", tmp_path / "images.json"
    write(folder, "a.png", shape=(20, 40))
    options = {"image_size": 14, "num_channels": 1, "fit": "none", "verdict_path": path}
    assert open_dataset(folder, **options).image_shape == (16, 32, 1)
    write(folder, "b.png", shape=(80, 20))
    again = open_dataset(folder, **options)
    assert (again.image_shape, again.names) == ((16, 32, 1), ("a.png",))
    assert open_dataset(folder, **(options | {"verdict_path": None})).image_shape == (23, 16, 1)


def test_turned_pictures_have_the_shape_that_they_stand_in(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_dataset(tmp_path, image_size=14, num_channels=1, fit="none").image_shape == (32, 16, 1)


@pytest.mark.parametrize("fit", ["cover", "contain", "none"])
def test_bad_files_change_nothing_in_any_fit(folder, fit):
    before = open_dataset(folder, image_size=14, num_channels=1, fit=fit).take(range(6))
    (folder / "bad.jpg").write_text("text")
    np.testing.assert_array_equal(open_dataset(folder, image_size=14, num_channels=1, fit=fit).take(range(6)), before)


def panorama(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 2000), np.uint8)).save(path)


def cut(path):
    panorama(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


GREY = {"photometric": "minisblack", "planarconfig": "contig"}
UNUSABLE = {
    "two bands": ("z.tif", lambda path: tifffile.imwrite(path, np.zeros((20, 2000, 2), np.uint8), **GREY)),
    "floats": ("z.tif", lambda path: tifffile.imwrite(path, np.zeros((20, 2000), np.float32))),
    "text": ("z.png", lambda path: path.write_text("text")),
    **{f"cut {kind}": (f"z.{kind}", cut) for kind in ("png", "jpg", "bmp", "tif", "gif", "webp")},
}


@pytest.mark.parametrize(
    ("case", "scan_limit"),
    [(case, 100) for case in UNUSABLE] + [(case, 1) for case in UNUSABLE if not case.startswith("cut")],
)
def test_pictures_that_are_not_used_have_no_part_in_the_common_shape(tmp_path, case, scan_limit):
    name, make = UNUSABLE[case]
    options = {"image_size": 14, "num_channels": 1, "fit": "none", "scan_limit": scan_limit}
    for number in range(4):
        write(tmp_path, f"{number}.png", 10 * number, (40, 40))
    alone = open_dataset(tmp_path, **options)
    for number in range(3):
        make(tmp_path / f"{number}{name}")
    dataset = open_dataset(tmp_path, **options)
    assert len(dataset.skipped) == 3
    assert dataset.image_shape == alone.image_shape == (16, 16, 1)
    np.testing.assert_array_equal(dataset.take(range(4)), alone.take(range(4)))


def test_a_shape_of_used_pictures_is_kept_and_cached(tmp_path, monkeypatch):
    folder, path = tmp_path / "images", tmp_path / "images.json"
    write(folder, "a.png", 50, shape=(20, 40))
    cut(folder / "b.png")
    options = {"image_size": 14, "num_channels": 1, "fit": "none", "verdict_path": path}
    dataset = open_dataset(folder, **options)
    assert dataset.image_shape == (16, 32, 1)
    assert np.unique(dataset.take([0, 0])).tolist() == [50]
    names = count_reads(monkeypatch)
    dataset.take([0])
    assert names == []  # kept in memory in its new shape
    assert open_dataset(folder, **options).image_shape == (16, 32, 1)


@pytest.mark.parametrize("case", ["two bands", "floats", "text", "cut png"])
def test_the_first_picture_that_is_used_gives_a_folder_its_shape(tmp_path, case):
    name, make = UNUSABLE[case]
    make(tmp_path / f"0{name}")
    for number in (1, 2):
        write(tmp_path, f"{number}.png", number, (12, 18))
    dataset = open_dataset(tmp_path, num_channels=1)
    assert (dataset.image_shape, len(dataset), len(dataset.skipped)) == ((12, 18, 1), 2, 1)


def test_fits_that_make_no_sense_are_refused(folder):
    for options, message in (
        ({"fit": "stretch", "image_size": 14}, "fit 'stretch': give one of cover, contain, none"),
        ({"fit": "contain"}, "fit 'contain': needs an image_size"),
        ({"layout": "NCHW", "image_size": 14}, "layout NCHW: only an array has one"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            open_dataset(folder, **options)
    with pytest.raises(ConfigurationError, match="fit 'none': only for a folder"):
        open_dataset(np.zeros((4, 8, 8, 3), np.uint8), fit="none")


def deep(path, low, high, shape=(64, 64)):
    Image.fromarray(np.linspace(low, high, 64).astype(np.uint16)[None].repeat(64, 0)).save(path)


@pytest.mark.parametrize("dtype", ["uint8", None])
def test_numbers_that_fill_little_of_sixteen_bits_are_said_and_counted(tmp_path, dtype):
    deep(tmp_path / "cells.png", 100, 1000)
    deep(tmp_path / "more.tif", 0, 4095)
    deep(tmp_path / "whole.png", 0, 65535)
    deep(tmp_path / "black.png", 0, 0)  # nothing is lost of it
    in_eight = (
        r"2 of 4 images of 16 bits keep at most 64 of 256 grey levels, since their numbers fill little of their range "
        r"\('cells.png': 100 to 1000, 5 levels; 'more.tif': 0 to 4095, 17 levels\): use them in 16 bits, or scale them"
    )
    in_sixteen = (
        r"2 of 4 images of 16 bits fill at most a quarter of 0 to 65535 \('cells.png': 100 to 1000; 'more.tif': 0 to "
        r"4095\), which becomes \[0, 1\]: give the range that does"
    )
    options = {"image_size": 14, "num_channels": 1, "dtype": dtype}
    for scan_limit in (100, 1):
        with pytest.warns(UserWarning, match=in_eight if dtype else in_sixteen):
            dataset = open_dataset(tmp_path, scan_limit=scan_limit, **options)
        assert (len(dataset.remarks), dataset.narrow is None) == ((1, True) if dtype else (0, False))
        assert dataset.skipped == ()
    (tmp_path / "cells.png").unlink()
    (tmp_path / "more.tif").unlink()
    dataset = open_dataset(tmp_path, **options)
    assert (dataset.remarks, dataset.narrow) == ((), None)


def test_colour_of_sixteen_bits_and_many_images_are_looked_at_too(tmp_path, monkeypatch):
    colour = np.random.default_rng(0).integers(0, 4096, (20, 20, 3)).astype(np.uint16)
    for number in range(4):
        tifffile.imwrite(tmp_path / f"{number}.tif", colour, photometric="rgb")
    monkeypatch.setattr(survey, "LOOKED_AT", 3)
    with pytest.warns(UserWarning, match=r"3 of 3 images of 16 bits looked at keep .*'0.tif': 0 to 4095, 17 levels"):
        open_dataset(tmp_path, image_size=14, dtype="uint8")
    with pytest.warns(
        UserWarning, match=r"3 of 3 images of 16 bits looked at fill at most a quarter .*'0.tif': 0 to 40"
    ):
        open_dataset(tmp_path, image_size=14)
