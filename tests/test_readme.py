"""The documents, run as they stand: every Python block alone, every example script, every command, path and link.

A block is what a reader copies, so it runs with no import or variable of another one. BYOL_JAX_EXAMPLE_SIZE,
_STEPS and _BATCH lower the examples' sizes, numbers of steps and batches.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pages import long
from tests.source_code import ROOT

SMALL = {
    "BYOL_JAX_EXAMPLE_SIZE": "32",
    "BYOL_JAX_EXAMPLE_STEPS": "2",
    "BYOL_JAX_EXAMPLE_BATCH": "4",
    "JAX_PLATFORMS": "cpu",
    "COLUMNS": "200",
}


class Block(NamedTuple):
    """A fenced block: its document, its first line's number, its language, its text."""

    path: Path
    line: int
    language: str
    text: str


def documents():
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    return sorted(path for path in found if path.exists())


def blocks(path):
    found, start, language = [], None, ""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start, language = number, line.strip().removeprefix("```").strip()
        else:
            found.append(Block(path, start, language, "\n".join(lines[start : number - 1])))
            start = None
    assert start is None, f"{path}:{start}: a block that isn't closed"
    return found


def with_language(*languages):
    return [block for path in documents() for block in blocks(path) if block.language in languages]


def label(value):
    path = value if isinstance(value, Path) else value.path
    return str(path.relative_to(ROOT)) + (f":{value.line}" if isinstance(value, Block) else "")


def environment():
    return os.environ | SMALL | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def check_runs(script, folder):
    """Runs a script in an empty folder as a reader would: warnings are only shown, the exit code counts."""
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, f"{script.name} ended with {done.returncode}:\n{said}"
    return done


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


PYTHON_BLOCKS = with_language("python")
SHELL = ("bash", "console", "sh")
NOT_RUN = {}
"""{"docs/page.md:12": why this Python block can't run here}."""


def outcomes(blocks_to_run, folder):
    """{label: the traceback that the block ends with, or ""}, each run alone; line numbers are the document's."""
    files = [folder / f"block{number}.py" for number in range(len(blocks_to_run))]
    for file, block in zip(files, blocks_to_run, strict=True):
        file.write_text("\n" * block.line + block.text + "\n")
    command = [sys.executable, "-m", "tests.alone", str(folder / "outcomes.json"), *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads((folder / "outcomes.json").read_text())
    return dict(zip(map(label, blocks_to_run), said, strict=True))


@pytest.fixture(scope="module")
def outcome_of_each_block(tmp_path_factory):
    to_run = [block for block in PYTHON_BLOCKS if label(block) not in NOT_RUN]
    return outcomes(to_run, tmp_path_factory.mktemp("blocks"))


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=label)
def test_a_python_block_runs_alone(block, outcome_of_each_block):
    if said := outcome_of_each_block.get(label(block)):
        pytest.fail(said, pytrace=False)


def test_a_block_that_needs_another_one_is_found(tmp_path):
    texts = ["import math\nradius = 2", "area = math.pi", "print(radius)", "import math\narea = math.pi"]
    written = [Block(ROOT / "docs" / "page.md", line, "python", text) for line, text in enumerate(texts, 7)]
    said = list(outcomes(written, tmp_path).values())
    assert (said[0], said[3]) == ("", "")
    assert "line 9" in said[1]  # the block's fence stands in line 8
    assert "NameError: name 'math' is not defined" in said[1]
    assert "NameError: name 'radius' is not defined" in said[2]


def test_every_block_has_a_language_that_is_tested():
    known = {"python", *SHELL}
    faults = [label(block) for path in documents() for block in blocks(path) if block.language not in known]
    assert not faults, f"neither of {', '.join(sorted(known))}: {'; '.join(faults)}"
    assert set(NOT_RUN) <= set(map(label, PYTHON_BLOCKS)), "a block that isn't there needs no reason"


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if "own" in path.name else pytest.mark.long) for path in EXAMPLES],
    ids=label,
)
def test_examples_run(path, tmp_path):
    done = check_runs(path, tmp_path)
    assert done.stdout.strip() or list(tmp_path.iterdir()), "an example shows or writes something"
    assert "Warning" not in done.stderr, done.stderr


def test_examples_are_short_and_introduced():
    for path in EXAMPLES:
        lines = path.read_text().splitlines()
        assert len(lines) < 70, f"{path.name}: {len(lines)} lines"
        assert lines[0].startswith('"""'), f"{path.name}: no docstring"
        assert re.match(r"\d\d_", path.name), f"{path.name}: examples are numbered"


def test_the_readme_shows_both():
    """Python to paste, commands to type, an installation, and the two commands that do everything."""
    languages = {block.language for block in blocks(ROOT / "README.md")}
    assert "python" in languages
    assert languages & set(SHELL)
    typed = "\n".join(block.text for block in blocks(ROOT / "README.md") if block.language in SHELL)
    for command in ("pip install", "make demo", "make test", "byol-jax train"):
        assert re.search(rf"^{command}\b", typed, re.MULTILINE), command


CALLED = r"(?:^|&& |\| |; )\$? ?(?:\w+=\S+ )*(?:\S*/)?"
"""What may stand before a program's name: a prompt, another command, variables, a folder."""


def commands(program):
    """Where each call stands, the word after it, and the rest of the line (continued ones joined).

    In shell blocks, and in backticks in the text.
    """
    texts = [(label(block), block.text.replace("\\\n", " ")) for block in with_language(*SHELL)]
    for path in documents():
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        texts += [(label(path), " ".join(words.split())) for words in re.findall(r"`([^`]+)`", prose)]
    return [
        (f"{where}: {match[0].strip()}", match[1], match[2])
        for where, text in texts
        for match in re.finditer(rf"{CALLED}{program} ([\w.=/-]+)(.*)", text, re.MULTILINE)
    ]


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    absent = [where for where, target, _ in commands("make") if "=" not in target and target not in targets]
    assert not absent, "\n".join(absent)
    assert {"demo", "test", "check", "long"} <= targets


def test_python_commands_lead_somewhere():
    faults = []
    for where, word, rest in commands("python"):
        module = rest.split()[0] if word == "-m" and rest else None  # `python -m` alone is no command
        found = importlib.util.find_spec(module) if module else word == "-m" or (ROOT / word).exists()
        faults += [] if found else [where]
    assert not faults, "\n".join(faults)
    assert {word for _, word, _ in commands("python -m interop")} <= {"convert", "inspect"}


def help_of(*arguments):
    command = [sys.executable, "-m", "byol_jax", *arguments, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sub_commands_and_their_options_exist():
    used = [(where, name, rest) for where, name, rest in commands("byol-jax") if not name.startswith("-")]
    overview = help_of()
    faults = [where for where, name, _ in used if not re.search(rf"^\s+{name}\b", overview, re.MULTILINE)]
    helps = {name: help_of(name) for name in {name for _, name, _ in used}} if not faults else {}
    for where, name, rest in used if not faults else []:
        options = re.findall(r"(?<=\s)--[\w-]+", rest)
        faults += [f"{where}: no {option}" for option in options if not re.search(rf"{option}\b", helps[name])]
    assert not faults, "\n".join(faults)


PARTS_OF_A_RUN = ("checkpoints/", "exported/", "network/", "DIRECTORY/", "STEP/")
"""What a path begins with that means a run's folder, not the repository."""

TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


def absent_paths(text, folder):
    """Paths in backticks that lead nowhere; braces are choices, * and ** are globs.

    A path starts at the repository's root, at the document's `folder`, or at the folder of a path that stands before it
    in the same paragraph: `byol_jax/nets/vit.py`, then `resnet.py`.
    """
    absent = []
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=\|| *- | *\d+\. )", prose):
        places = [ROOT, folder]
        for word in " ".join(re.findall(r"`([^`]+)`", paragraph)).split():
            path = word.partition("::")[0]
            is_path = path.endswith((".py", ".md", "/")) or ("/" in path and path.split("/")[0] in TOP)
            if not is_path or not re.fullmatch(r"[\w./*{},-]+", path) or path.startswith(PARTS_OF_A_RUN):
                continue
            found = {one: [hit for place in places for hit in place.glob(one)] for one in spellings(path)}
            absent += [one for one, hits in found.items() if not hits]
            places += [hit if hit.is_dir() else hit.parent for hits in found.values() for hit in hits[:1]]
    return absent


def spellings(path):
    """Every choice that the braces of a path leave."""
    if not (choice := re.search(r"\{([^{}]*)\}", path)):
        return [path]
    return [one for word in choice[1].split(",") for one in spellings(path.replace(choice[0], word, 1))]


def test_the_reading_order_fits_one_screen():
    lines = (ROOT / "docs" / "reading_order.md").read_text().splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100


def test_the_reading_order_names_every_folder_of_tests():
    page = (ROOT / "docs" / "reading_order.md").read_text()
    folders = [path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name[0] not in "._"]
    absent = [name for name in folders if f"`{name}/`" not in page.partition("In `tests/`, ")[2]]
    assert not absent, absent


def test_the_page_of_long_tests_names_those_without_a_row():
    page = long.PAGE.read_text()
    assert page == long.with_list(page), "python -m tests.pages.long writes it anew"
    assert set() < long.recorded(page) <= set(long.measuring())


def test_what_was_tried_and_has_no_row_of_figures_is_marked():
    """In docs/reliability.md, of what `make long` alone runs."""
    page = (ROOT / "docs" / "reliability.md").read_text().partition("## What was tried")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    recorded, marks = long.recorded(long.PAGE.read_text()), {}
    for what, *_, in_full, _, where in rows[1:]:
        names = re.findall(r"/?(test_\w+\.py(?:::\w+)?)", where)
        if in_full:
            marks[what] = "°" in in_full, not any(f"/{name}" in test for name in names for test in recorded)
    assert [what for what, (marked, absent) in marks.items() if marked != absent] == []
    assert len(marks) > 20


def test_every_path_that_a_document_names_is_there():
    faults = [f"{label(path)}: {one}" for path in documents() for one in absent_paths(path.read_text(), path.parent)]
    assert not faults, "\n".join(faults)


def test_a_path_that_is_not_there_is_found():
    text = "`byol_jax/nets/vit.py`, `resnet.py` and `tests/laws/`, `byol_jax/{loss,ema}.py`, `nets/*.py`: all there"
    assert absent_paths(text, ROOT) == []
    text = "`byol_jax/nets/vit.py`, `loss.py`, `tests/lows/`, `byol_jax/{loss,emma}.py`\n\n`vit.py`, `layer/0/kernel`"
    assert absent_paths(text, ROOT) == ["loss.py", "tests/lows/", "byol_jax/emma.py", "vit.py"]


def test_links_between_documents_lead_somewhere():
    faults = []
    for path in documents():
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", prose):
            if "://" not in target and not (path.parent / target).exists():
                faults.append(f"{label(path)}: {target}")
    assert not faults, "\n".join(faults)
