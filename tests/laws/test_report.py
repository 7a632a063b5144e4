"""The report and its pictures: complete, self-contained, and unmoved by damaged files."""

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from byol_jax import ConfigurationError, DataError
from byol_jax.report import write_report
from byol_jax.report.curves import MAX_POINTS, Reference, line_chart, round_ticks
from byol_jax.report.matrix import confusion_chart
from byol_jax.report.scatter import scatter_chart
from byol_jax.runs.pictures import neighbours_grid, views_grid

FIELDS = ("loss", "grad_norm", "param_norm", "decay", "feature_std", "images_per_second", "data_wait")


class Page(HTMLParser):
    """Tags in order, text, and whether every tag is closed in its turn."""

    VOID = ("meta", "img", "line", "circle", "path", "rect")

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.balanced, self.links = [], "", [], True, []
        self.feed(text)
        self.balanced &= not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.balanced &= bool(self.open) and self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def make_run(folder, *, rows=30, **changes):
    lines = [
        json.dumps({"step": 10 * i, "epoch": i / 2, "seconds": 6.0, "nonfinite": 0}
                   | dict.fromkeys(FIELDS, 1 / i) | changes)
        for i in range(1, rows + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.json").write_text(json.dumps({"learner": {"projection_size": 64}, "seed": 3}))
    (folder / "environment.json").write_text(json.dumps({"packages": {"jax": "0.10", "torch": None}}))
    return folder


def page_of(folder, **options):
    return Page(write_report(folder, **options).read_text())


def test_a_whole_run_is_all_there(tmp_path):
    make_run(tmp_path)
    grey = np.random.default_rng(0).random((3, 28, 28, 1))
    views_grid(grey, grey, grey, tmp_path / "views.png")
    scores = {"raw_pixels": {"knn": 0.8234, "linear": 0.829}, "byol": {"knn": 0.861, "linear": 0.897}}
    (tmp_path / "evaluation.json").write_text(json.dumps(scores))
    page = page_of(tmp_path, title="my run")
    assert page.balanced
    assert page.tags.count("svg") == len(FIELDS)
    assert page.tags.count("img") == 1
    for text in ("my run", "300 steps", "15.0 epochs", "3.0 minutes", "raw pixels", "82.3", "89.7",
                 "1/√64 = 0.125", "collapsed below 0.0125", "learner/projection_size", "packages/jax"):  # fmt: skip
        assert text in page.text
    assert "Note:" not in page.text


def test_nothing_is_fetched_or_run(tmp_path):
    make_run(tmp_path)
    views_grid(*[np.zeros((1, 4, 4, 3))] * 3, tmp_path / "views.png")
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "http" not in text


def test_everything_from_files_is_escaped(tmp_path):
    evil = '<script>alert(1)</script>"&'
    make_run(tmp_path)
    for name in ("config", "environment"):
        (tmp_path / f"{name}.json").write_text(json.dumps({evil: evil, "list": [evil]}))
    (tmp_path / "evaluation.json").write_text(json.dumps({evil: {evil: 0.5}}))
    page = page_of(tmp_path, title=evil)
    assert page.balanced
    assert "script" not in page.tags
    assert page.text.count(evil) == 10  # title twice; twice two in pairs and one in a list; evaluation's two


def test_an_empty_folder_has_a_report_too(tmp_path):
    page = page_of(tmp_path)
    assert page.balanced
    assert "svg" not in page.tags
    assert "no rows" in page.text
    assert tmp_path.name in page.text


def test_damaged_files_are_counted_and_left_out(tmp_path):
    make_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n{"loss": 3}\n{"step": true}\n{"step": NaN}\n\xff\xfe\n{"step": 99, "lo')
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "environment.json").write_bytes(b"\xff{")
    (tmp_path / "views.png").write_bytes(b"GIF89a")
    page = page_of(tmp_path)
    assert page.balanced
    assert page.tags.count("svg") == len(FIELDS)
    assert "left out: 6." in page.text
    for name in ("config.json can't", "environment.json can't", "views.png is no PNG"):
        assert name in page.text
    assert "1/√" not in page.text


def test_rows_may_lack_fields_and_hold_other_things(tmp_path):
    make_run(tmp_path, loss=None, decay="fast", grad_norm=float("nan"), param_norm=10**400, data_wait=[1])
    page = page_of(tmp_path)
    assert page.balanced
    assert page.tags.count("svg") == 2  # feature_std and images_per_second


@pytest.mark.parametrize("wrong", [False, True])
def test_compilation_is_shown_where_rows_have_it(tmp_path, wrong):
    """Rows of older runs have none; a resumed run has several."""
    make_run(tmp_path)
    assert "compiling" not in page_of(tmp_path).text
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for row, seconds in zip(rows[::10], (12.25, "many" if wrong else 3.25, None), strict=True):
        row["compile_seconds"] = seconds
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(tmp_path)
    assert f"{12.2 if wrong else 15.5} seconds of them spent compiling" in page.text
    assert page.tags.count("svg") == len(FIELDS)


def test_collapse_and_skipped_steps_are_said(tmp_path):
    page = page_of(make_run(tmp_path, feature_std=0.001, nonfinite=1, rows=2))
    assert "collapsed: 0.001" in page.text
    assert "2 steps not finite" in page.text


def test_a_run_of_pretrain_that_left_the_projection_at_its_default_has_a_verdict_too(tmp_path):
    make_run(tmp_path, feature_std=1e-4, rows=60)
    (tmp_path / "config.json").write_text(json.dumps({"learner": {"moving_average_decay": 0.9}, "seed": 3}))
    assert "It has collapsed since step 200" in page_of(tmp_path).text


def test_facts_beside_the_scores_are_shown(tmp_path):
    facts = {"k": 20, "scores": {"byol": {"knn": 0.5}}, "projections": {"collapsed": False}}
    (tmp_path / "evaluation.json").write_text(json.dumps(facts))
    page = page_of(tmp_path)
    assert all(text in page.text for text in ("projections/collapsed", "false", "50.0"))


WHOLE = {
    "scores": {"random_init": {"knn": 0.25}, "byol": {"knn": 0.5, "finetune_0.1": 0.75}},
    "intervals": {"byol": {"knn": [0.46, 0.54]}},
    "protocols": {"knn": {"title": "kNN, k = 7", "how": "by < cosine"}},
    "confusion": {"classes": ["cat", "a <b>"], "counts": {"byol": {"knn": [[3, 1], [0, 4]]}}},
}


def test_each_number_stands_beside_its_protocol_and_interval(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(WHOLE))
    page = page_of(tmp_path)
    assert page.balanced
    for text in ("kNN, k = 7by < cosine25.0", "50.046.0 to 54.0", "finetune_0.1–75.0", "a <b>", "label", "taken for"):
        assert text in page.text
    assert page.tags.count("svg") == 1
    assert "confusion" not in page.text


@pytest.mark.parametrize(
    "change",
    [
        {"intervals": {"byol": {"knn": ["a", 1]}}},
        {"intervals": [1]},
        {"protocols": {"knn": 7}},
        {"protocols": {"knn": {"title": 7, "how": []}}},
        {"confusion": []},
        {"confusion": {"classes": "ab", "counts": {"byol": {"knn": [[3, 1], [0, 4]]}}}},
        {"confusion": {"classes": [1, 2], "counts": {"byol": {"knn": [[3, 1], [0, -4]]}}}},
        {"confusion": {"classes": [1, 2], "counts": {"byol": {"knn": [[3, 1], [0]]}}}},
        {"confusion": {"classes": [1, 2], "counts": {"byol": {"knn": [[3, 1], [0, True]]}, "other": 3}}},
        {"confusion": {"classes": [1] * 201, "counts": {"byol": {"knn": [[0] * 201] * 201}}}},
    ],
)
def test_what_is_no_protocol_interval_or_matrix_is_left_out(tmp_path, change):
    (tmp_path / "evaluation.json").write_text(json.dumps(WHOLE | change))
    page = page_of(tmp_path)
    assert page.balanced
    assert "75.0" in page.text
    assert page.tags.count("svg") == ("confusion" not in change)
    (tmp_path / "evaluation.json").write_text(json.dumps({"scores": {}, "projections": {"feature_std": 1.0}}))
    assert "Evaluation" not in page_of(tmp_path).text


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(0, 1000))
def test_every_confusion_is_xml_inside_its_frame(size, seed):
    counts = np.random.default_rng(seed).integers(0, 3, (size, size)) * 1000
    names = ["x & y" * (1 + number % 5) for number in range(size)]
    chart = ElementTree.fromstring(confusion_chart(counts.tolist(), names, name="a < b"))
    side = float(chart.attrib["viewBox"].split()[2])
    cells = [one for one in chart.iter("rect") if one.attrib["class"] != "field"]
    assert len(cells) == np.count_nonzero(counts)
    for one in cells:
        assert all(0 <= float(one.attrib[name]) <= side for name in ("x", "y"))
        assert float(one.attrib["x"]) + float(one.attrib["width"]) <= side
        assert 0 < float(one.attrib["fill-opacity"]) <= 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    opacities = [float(one.attrib["fill-opacity"]) for one in cells]
    np.testing.assert_allclose(opacities, shares[np.nonzero(shares)], atol=1e-3)
    wrong = sum("wrong" in one.attrib["class"] for one in cells)
    assert wrong == np.count_nonzero(counts) - np.count_nonzero(np.diag(counts))


MAP = {"classes": ["cat", "a <b>"], "groups": [0, 1, 1], "coordinates": {"byol": {"x": [0, 1, 4], "y": [0, 0.5, 1]}}}


def map_of(folder, **changes):
    (folder / "evaluation.json").write_text(json.dumps(WHOLE | {"confusion": {}, "map": MAP | changes}))
    return page_of(folder)


def test_a_map_shows_each_point_in_its_place(tmp_path):
    page = map_of(tmp_path)
    assert page.balanced
    assert "PCA" in page.text
    assert "a <b>" in page.text
    text = (tmp_path / "report.html").read_text()
    chart = ElementTree.fromstring(text[text.index('<svg class="scatter"') : text.index("</svg>") + 6])
    points = [one for one in chart.iter("circle") if one.attrib["r"] == "2.5"]
    x, y = (np.array([float(one.attrib[side]) for one in points]) for side in ("cx", "cy"))
    np.testing.assert_allclose(np.diff(x) / (x[2] - x[0]), [0.25, 0.75], atol=1e-3)
    np.testing.assert_allclose((y[0] - y[2]) / (x[2] - x[0]), 0.25, atol=1e-3)  # the same scale, upwards
    assert points[1].attrib["fill"] == points[2].attrib["fill"] != points[0].attrib["fill"]
    assert x.min() >= 0
    assert max(x.max(), 0) <= float(chart.attrib["viewBox"].split()[2])


@pytest.mark.parametrize(
    "change",
    [
        {"groups": [0, 1, 2]},
        {"groups": [0, 1]},
        {"classes": 3},
        {"coordinates": {"byol": {"x": [0, 1, "a"], "y": [0, 1, 2]}}},
        {"coordinates": {"byol": {"x": [0, 1, 2]}, "other": 4}},
    ],
)
def test_what_is_no_map_is_left_out(tmp_path, change):
    page = map_of(tmp_path, **change)
    assert page.balanced
    assert "PCA" not in page.text


def test_points_in_one_place_have_a_map_too():
    assert scatter_chart([(1.0, 2.0)] * 3, [0] * 3, ["one"], name="map").count('cx="170.0"') == 3


def test_no_folder_no_report(tmp_path):
    with pytest.raises(ConfigurationError, match="isn't a folder"):
        write_report(tmp_path / "absent")


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64) | st.none() | st.integers() | st.booleans()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), max_size=30), st.lists(st.floats(0, 1e6), max_size=2))
def test_every_chart_is_xml_inside_its_frame(points, levels):
    text = line_chart(points, name="a < b", references=[Reference(level, "x & y") for level in levels])
    if text:
        chart = ElementTree.fromstring(text)
        _, _, width, height = map(float, chart.attrib["viewBox"].split())
        for element in chart.iter():
            for name, limit in (("x1", width), ("x2", width), ("y1", height), ("y2", height), ("cx", width)):
                assert 0 <= float(element.attrib.get(name, 0)) <= limit
            pairs = element.attrib.get("d", "M0 0")[1:].split("L")
            assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in map(str.split, pairs))


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.booleans())
def test_ticks_are_round_and_enclose(one, other, whole):
    low, high = sorted((one, other))
    ticks = round_ticks(low, high, whole=whole)
    steps = np.diff(ticks)
    assert 2 <= len(ticks) <= 12
    assert np.all(steps > 0)
    slack = 1e-6 * max(abs(low), abs(high), steps[0])
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


def test_gaps_break_the_curve_and_single_points_are_dots():
    chart = line_chart([(0, 1.0), (1, 2.0), (2, None), (3, 1.0)], name="loss")
    assert chart.count("<path") == 1
    assert chart.count("<circle") == 1


def test_thinning_keeps_the_spike():
    points = [(i, 1.0) for i in range(20_000)]
    points[12_345] = (12_345, 7.0)
    path = ElementTree.fromstring(line_chart(points, name="loss")).find(".//path")
    assert path is not None
    pairs = path.attrib["d"][1:].split("L")
    assert len(pairs) <= MAX_POINTS + 2
    heights = [float(pair.split()[1]) for pair in pairs]
    assert min(heights) < 0.5 * max(heights)


def test_the_grid_shows_what_it_was_given(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, size=(10, 28, 28, 1), dtype=np.uint8)
    path = views_grid(images, images / 255, np.stack([images[..., 0]] * 3, axis=-1)[:, :14, :14], tmp_path / "grid.png")
    with Image.open(path) as picture:
        page = np.asarray(picture)
    enlarged = images[0, ..., 0].repeat(4, axis=0).repeat(4, axis=1)  # [112, 112], nearest
    top, left = 30, 8
    for column in (0, 1):
        x = left + column * 120
        np.testing.assert_array_equal(page[top : top + 112, x : x + 112], enlarged[..., None].repeat(3, axis=-1))
    assert page.shape == (30 + 10 * 120, 8 + 3 * 120, 3)


def test_neighbours_stand_beside_their_image_in_frames(tmp_path):
    random = np.random.default_rng(1)
    images, nearest = (
        random.integers(0, 256, (3, 28, 28, 3), np.uint8),
        random.integers(0, 256, (3, 2, 28, 28, 3), np.uint8),
    )
    alike = np.array([[True, False], [False, True], [True, True]])
    path = neighbours_grid(images, {"one": (nearest, alike), "two": (nearest[:, :1], alike[:, :1])}, tmp_path / "n.png")
    with Image.open(path) as picture:
        page = np.asarray(picture)
    assert page.shape == (30 + 3 * 120, 8 * 7 + 4 * 112, 3)
    enlarged = nearest.repeat(4, axis=2).repeat(4, axis=3)
    for row in range(3):
        for column, left in enumerate((8 + 128, 8 + 128 + 120)):
            top = 30 + 120 * row
            np.testing.assert_array_equal(page[top : top + 112, left : left + 112], enlarged[row, column])
            green = page[top - 2, left + 50, 1] > page[top - 2, left + 50, 0]
            assert green == alike[row, column]
    (tmp_path / "n.png").rename(tmp_path / "neighbours.png")
    assert "Nearest" not in page_of(tmp_path).text
    (tmp_path / "evaluation.json").write_text(json.dumps(WHOLE))
    assert "Nearest neighbours" in page_of(tmp_path).text


def test_large_images_are_shrunk(tmp_path):
    path = views_grid(*[np.full((1, 300, 600, 3), 2.0, np.float32)] * 3, tmp_path / "grid.png")
    with Image.open(path) as picture:
        assert picture.size == (8 + 3 * 264, 30 + 136)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((2, 4, 4), float, r"original has shape \(2, 4, 4\)"),
        ((2, 4, 4, 2), float, "1 or 3 channels"),
        ((2, 4, 4, 1), int, "dtype int64"),
        ((3, 4, 4, 1), float, "different numbers"),
    ],
)
def test_the_grid_refuses_in_one_line(tmp_path, shape, dtype, words):
    good = np.zeros((2, 4, 4, 1))
    with pytest.raises(DataError, match=words):
        views_grid(np.zeros(shape, dtype), good, good, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())
