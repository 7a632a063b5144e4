"""The documents, run as they stand: every Python block, every example script, every command that is named.

Sizes and numbers of steps are lowered by BYOL_JAX_EXAMPLE_SIZE and BYOL_JAX_EXAMPLE_STEPS. A document's blocks run in
order in one process, since that is how a reader reads them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.source_code import ROOT

SMALL = {"BYOL_JAX_EXAMPLE_SIZE": "32", "BYOL_JAX_EXAMPLE_STEPS": "2", "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}


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
    return [block for path in documents() for block in blocks(path) if block.language.split(" ")[0] in languages]


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


PYTHON_DOCUMENTS = [path for path in documents() if any(block.language == "python" for block in blocks(path))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", PYTHON_DOCUMENTS, ids=label)
def test_python_blocks_run(path, tmp_path):
    """All blocks of a document in one process, each defining something; line numbers are the document's."""
    script = []
    for block in blocks(path):
        if block.language == "python":
            script += [""] * (block.line - len(script)) + block.text.splitlines()
    source = "\n".join(script) + "\n"
    names = re.findall(r"^(?:import|from|def|class|\w[\w, ]*=)", source, re.MULTILINE)
    assert names, "a block that defines nothing shows nothing"
    file = tmp_path / f"{path.stem}.py"
    file.write_text(source)
    check_runs(file, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=label)
def test_examples_run(path, tmp_path):
    done = check_runs(path, tmp_path)
    assert done.stdout.strip() or list(tmp_path.iterdir()), "an example shows or writes something"


def test_examples_are_short_and_introduced():
    for path in EXAMPLES:
        lines = path.read_text().splitlines()
        assert len(lines) < 70, f"{path.name}: {len(lines)} lines"
        assert lines[0].startswith('"""'), f"{path.name}: no docstring"
        assert re.match(r"\d\d_", path.name), f"{path.name}: examples are numbered"


def test_the_readme_shows_both():
    """Once it is there: Python to paste, commands to type, and the two commands that do everything."""
    if (ROOT / "README.md").exists():
        languages = {block.language for block in blocks(ROOT / "README.md")}
        assert "python" in languages
        assert languages & {"bash", "console", "sh"}
        text = (ROOT / "README.md").read_text()
        assert "make demo" in text
        assert "make test" in text
    else:
        assert not PYTHON_DOCUMENTS, "documents without a README"


CALLED = r"(?:^|&& |\| |; )\$? ?(?:\w+=\S+ )*(?:\S*/)?"
"""What may stand before a program's name: a prompt, another command, variables, a folder."""


def commands(program):
    """In shell blocks: the place of each call, the word after it, and the rest of the line (continued ones joined)."""
    found = []
    for block in with_language("bash", "console", "sh", "shell"):
        text = block.text.replace("\\\n", " ")
        for match in re.finditer(rf"{CALLED}{program} ([\w=-]+)(.*)", text, re.MULTILINE):
            found.append((f"{label(block)}: {match[0].strip()}", match[1], match[2]))
    return found


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    absent = [where for where, target, _ in commands("make") if "=" not in target and target not in targets]
    assert not absent, "\n".join(absent)
    assert {"demo", "test", "check", "long"} <= targets


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


def test_links_between_documents_lead_somewhere():
    faults = []
    for path in documents():
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", prose):
            if "://" not in target and not (path.parent / target).exists():
                faults.append(f"{label(path)}: {target}")
    assert not faults, "\n".join(faults)
