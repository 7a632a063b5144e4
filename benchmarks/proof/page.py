"""The page of the rows that there are, and its plots. Pure functions; nothing is averaged over fewer seeds than said.

Where all seeds of a run are there, a number is their mean with the lowest and the highest; where some are missing, each
of those that there are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.harness.table import markdown
from benchmarks.proof.ablations import VARIANTS
from benchmarks.proof.chart import curve_chart, dot_chart, sheet
from benchmarks.proof.items import EXPERIMENTS, LIMIT, RACES, SEEDS, SIDES, Item
from benchmarks.proof.measure import PROTOCOL

__all__ = ["direction", "page", "plots", "told"]

Row = Mapping[str, Any]
Groups = Mapping[str, Sequence[Row | None]]
"""By group the rows of its seeds in their order; None for one that is missing."""

NAMES = {"byol_jax": "byol_jax", "byol_pytorch": "byol-pytorch 0.9.1"}
RACE_DATA = {"fashion": "Fashion-MNIST", "photos": "photos of solar cells"}
GOALS = {"knn": 0.91, "linear": 0.925}
"""Of all of Fashion-MNIST within about an hour."""


def page(items: Sequence[Item], rows: Sequence[Row], *, scale: str = "full") -> str:
    """README.md beside the rows: what came out, what is missing, and what each number was made with."""
    groups = _groups(items, rows)
    parts = ["# Does BYOL learn here?", _introduction(items, rows, scale)]
    sections = {"race": _race, "long": _long, "ablations": _ablations, "transfer": _transfer}
    for name, title in EXPERIMENTS.items():
        parts += [f"## {name.capitalize()}: {title}", *sections[name](groups)]
    return "\n\n".join([*parts, "## Every run", *_every_run(rows)]) + "\n"


def _introduction(items: Sequence[Item], rows: Sequence[Row], scale: str) -> str:
    there = {_name(row) for row in rows}
    missing = [item.name for item in items if item.name not in there]
    budget = sum(item.budget for item in items if item.name in missing) / 3600
    state = f"{len(rows)} of {len(items)} runs are done."
    if missing:
        state += f" Missing, at most {budget:.1f} of {LIMIT / 3600:.0f} hours on two cores: {', '.join(missing)}."
    lines = [
        "`python -m benchmarks.proof` runs what is missing and skips what is done;"
        " [benchmarks/README.md](../../README.md) says how. Accuracies in per cent: mean of all seeds (lowest to"
        " highest), or where a seed is missing each by itself.",
        state,
        PROTOCOL,
    ]
    if scale != "full":
        lines.insert(0, "**This is a trial of the command: none of these numbers means anything.**")
    return "\n\n".join(lines)


def _name(row: Row) -> str:
    item = row["item"]
    return f"{item['experiment']}-{item['variant']}_{item['seed']}"


def _groups(items: Sequence[Item], rows: Sequence[Row]) -> Groups:
    by_name = {_name(row): row for row in rows}
    groups: dict[str, list[Row | None]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(by_name.get(item.name))
    return groups


def told(values: Sequence[float | None], form: Callable[[float], str] = lambda x: f"{100 * x:.1f}") -> str:
    """One cell: the mean of all with the lowest and the highest; each by itself where one is None.

    Example:
        >>> told([0.5, 0.75, 1.0]), told([0.5, None, 1.0]), told([None]), told([0.5])
        ('75.0 (50.0 to 100.0)', '50.0, 100.0 (2 of 3 seeds)', 'missing', '50.0')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "missing"
    if len(known) < len(values):
        return f"{', '.join(map(form, known))} ({len(known)} of {len(values)} seeds)"
    if len(known) == 1:
        return form(known[0])
    return f"{form(sum(known) / len(known))} ({form(min(known))} to {form(max(known))})"


def _values(rows: Sequence[Row | None], find: Callable[[Any], float]) -> list[float | None]:
    return [None if row is None else find(row["result"]) for row in rows]


def _cell(rows: Sequence[Row | None], find: Callable[[Any], float], form: Callable[[float], str] | None = None) -> str:
    return told(_values(rows, find)) if form is None else told(_values(rows, find), form)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _race(groups: Groups) -> list[str]:
    seconds = next(iter(RACES.values()))[2]["train_seconds"]
    parts = [
        f"A small torch network, {seconds / 60:.0f} minutes of training for each side, byol_jax's tracing, verification"
        " and compilation counted, measurements not. Both start from the same weights, heads alike, and see the same"
        " images in the same order, in batches of 64, with Adam at 3e-4 and their own default augmentation: the same"
        " set, drawn for each image by byol_jax and once a batch by byol-pytorch."
    ]
    if any(_raced(groups)):
        parts.append("![kNN and linear accuracy over minutes of training, a line for each seed](race.svg)")
    for name, data in RACE_DATA.items():
        sides = {side: groups.get(f"race-{name}-{side}", [None]) for side in SIDES}
        table = [[data, "kNN", "linear", "steps", "seconds before the first step"]]
        for side, rows in sides.items():
            last = [_cell(rows, lambda result, key=key: result["points"][-1][key]) for key in ("knn", "linear")]
            steps = _cell(rows, lambda result: result["steps"], _whole)
            setup = _cell(rows, lambda result: sum(result["phases"].values()), _whole)
            table.append([NAMES[side], *last, steps, setup])
        start = [
            _cell(sides["byol_jax"], lambda result, key=key: result["points"][0][key]) for key in ("knn", "linear")
        ]
        table.append(["both, not trained", *start, "0", "-"])
        shares = {row["data"]["most_frequent"] for rows in sides.values() for row in rows if row is not None}
        table += [["always the most frequent label", *[f"{100 * share:.1f}"] * 2, "-", "-"] for share in sorted(shares)]
        parts += [markdown(table), _differences(sides)]
    return parts


def _raced(groups: Groups) -> list[bool]:
    return [row is not None for group, rows in groups.items() if group.startswith("race-") for row in rows]


def _differences(sides: Mapping[str, Sequence[Row | None]]) -> str:
    """Ours minus theirs by seed, for pairs of the same commit on the same machine."""
    parts, unequal = {"knn": [], "linear": []}, 0
    for ours, theirs in zip(*(sides[side] for side in SIDES), strict=True):
        if ours is None or theirs is None:
            continue
        if (ours["git"], ours["machine"]) != (theirs["git"], theirs["machine"]):
            unequal += 1
            continue
        for key, found in parts.items():
            found.append(100 * (ours["result"]["points"][-1][key] - theirs["result"]["points"][-1][key]))
    text = "Points that byol_jax is ahead, seed by seed: "
    text += "; ".join(f"{name} {', '.join(f'{x:+.1f}' for x in xs) or 'missing'}" for name, xs in parts.items())
    text += f". {unequal} pair(s) of other commits or machines are left out" if unequal else ""
    return text.replace("knn", "kNN") + "."


def _long(groups: Groups) -> list[str]:
    table = [["features", "kNN", "linear", "steps", "minutes of training"]]
    for name, title in {"raw_pixels": "raw pixels", "byol": "BYOL"}.items():
        rows = groups.get(f"long-{name}", [None])
        scores = [_cell(rows, lambda result, key=key: result[key]) for key in ("knn", "linear")]
        more = ["-", "-"]
        if name == "byol":
            more = [_cell(rows, lambda result: result["steps"], _whole)]
            more.append(_cell(rows, lambda result: result["train_seconds"] / 60, _whole))
        table.append([title, *scores, *more])
    verdicts = []
    for key, goal in GOALS.items():
        known = [row["result"][key] for row in groups.get("long-byol", []) if row is not None]
        reached = f"{sum(value >= goal for value in known)} of {len(known)} seeds"
        reached += f", {len(SEEDS) - len(known)} missing" if len(known) < len(SEEDS) else ""
        verdicts.append(f"{key.replace('knn', 'kNN')} at least {100 * goal:g}: {reached}")
    text = "60,000 images without labels, then all 60,000 labels, 10,000 test images; a small convolutional network"
    return [f"{text} (benchmarks/proof/long.py).", markdown(table), f"Reached of the goals: {'; '.join(verdicts)}."]


def direction(variant: Sequence[float | None], whole: Sequence[float | None]) -> str:
    """How all runs of one lie to all of the other: "lower", "higher", or "not told apart"; "missing".

    Example:
        >>> direction([0.1, 0.2], [0.3, 0.4]), direction([0.1, 0.35], [0.3, 0.4]), direction([None, 0.1], [0.2, 0.3])
        ('lower', 'not told apart', 'missing')
    """
    ours, theirs = ([value for value in values if value is not None] for values in (variant, whole))
    if len(ours) < len(variant) or len(theirs) < len(whole) or not ours or not theirs:
        return "missing"
    if max(ours) < min(theirs):
        return "lower"
    return "higher" if min(ours) > max(theirs) else "not told apart"


def _ablations(groups: Groups) -> list[str]:
    titles = "what is changed", "kNN", "linear", "spread", "collapsed", "here", "published", "as published", "source"
    table: list[list[str]] = [[*titles]]
    rows = {name: groups.get(f"ablations-{name}", [None]) for name in VARIANTS}
    whole = _values(rows["baseline"], lambda result: result["linear"])
    for name, variant in VARIANTS.items():
        scores = [_cell(rows[name], lambda result, key=key: result[key]) for key in ("knn", "linear")]
        spread = _cell(rows[name], lambda result: result["spread"], lambda x: f"{x:.2f}")
        known = [row["result"]["collapsed"] for row in rows[name] if row is not None]
        found = direction(_values(rows[name], lambda result: result["linear"]), whole)
        found = "-" if name == "baseline" else found
        agrees = "-" if variant.lower is None or found in ("missing", "-") else "yes" if found == "lower" else "no"
        collapsed = f"{sum(known)} of {len(known)}" if known else "missing"
        table.append([variant.title, *scores, spread, collapsed, found, variant.published, agrees, variant.source])
    text = (
        "The demo's recipe, 4,000 steps of 64, on 60,000 images; labels of 10,000. Spread: of the test images'"
        " projections, 1 where directions are spread evenly, collapsed below 0.1. Here: lower where every seed's linear"
        " accuracy is below each of the whole's. Published: ImageNet, top-1, linear. An untrained network's features"
        " already say much of such small images, so a collapse costs less here than on ImageNet."
    )
    plot = ["![linear accuracy of each run](ablations.svg)"] if any(_dots(groups).values()) else []
    return [text, *plot, markdown(table)]


def _dots(groups: Groups) -> dict[str, list[float]]:
    found = {}
    for name, variant in VARIANTS.items():
        rows = groups.get(f"ablations-{name}", [])
        found[variant.title.partition(":")[0].partition(" (")[0]] = [
            100 * row["result"]["linear"] for row in rows if row is not None
        ]
    return found


def _transfer(groups: Groups) -> list[str]:
    rows = groups.get("transfer-resnet18", [None])
    starts = [_cell(rows, lambda result, key=key: result[key]["accuracy"]) for key in ("random", "byol")]
    gain = _cell(rows, lambda result: result["gain"], lambda x: f"{100 * x:+.1f}")
    table = [["fine-tuned in PyTorch", "from random weights", "from BYOL's", "gain, points"]]
    table.append(["torchvision's ResNet-18, 600 labels of Fashion-MNIST", *starts, gain])
    text = "Both starts have the same random weights before BYOL, the same labels and the same rates to choose from"
    return [f"{text} (benchmarks/proof/transfer.py).", markdown(table)]


def _every_run(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["None yet."]
    machines: list[Any] = []
    table = [["run", "seconds", "budget", "load before", "load after", "commit", "machine", "date", "data"]]
    for row in rows:
        if row["machine"] not in machines:
            machines.append(row["machine"])
        git, item = row["git"], row["item"]
        commit = "none" if git is None else git["commit"][:10] + (" changed" if git["changed"] else "")
        cells = [_name(row), _whole(row["seconds"]), _whole(item["budget"]), *(f"{x:.1f}" for x in row["load_average"])]
        number = str(machines.index(row["machine"]) + 1)
        table.append([*cells, commit, number, row["date"], row["data"]["sha256"][:10]])
    lines = [
        f"{number}. {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']},"
        f" {machine['libc']}, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
        + "".join(f", {name}={value}" for name, value in machine["variables"].items())
        for number, machine in enumerate(machines, 1)
    ]
    return [markdown(table), "Machines:", "\n".join(lines)]


def plots(items: Sequence[Item], rows: Sequence[Row]) -> dict[str, str]:
    """SVG pages by file name, of what there are rows for."""
    groups, found = _groups(items, rows), {}
    charts = [_race_chart(groups, name, key) for name in RACE_DATA for key in ("knn", "linear")]
    if any(charts):
        found["race.svg"] = sheet([chart for chart in charts if chart], columns=2)
    dots = _dots(groups)
    if any(dots.values()):
        chart = dot_chart(dots, title="Linear accuracy, a dot for each seed", x_label="per cent")
        found["ablations.svg"] = sheet([chart], columns=1)
    return found


def _race_chart(groups: Groups, data: str, key: str) -> str:
    curves = {
        NAMES[side]: [
            [(point["seconds"] / 60, 100 * point[key]) for point in row["result"]["points"]]
            for row in groups.get(f"race-{data}-{side}", [])
            if row is not None
        ]
        for side in SIDES
    }
    title = f"{RACE_DATA[data]}: {key.replace('knn', 'kNN')}, per cent"
    return curve_chart(curves, title=title, x_label="minutes of training")
