"""What every test runs under: eight CPU devices, strict dtype promotion, warnings as errors (pyproject.toml).

Importing a module of tests must not start a JAX computation: the number of devices is fixed by the first one.

What one test has compiled no other compiles again, whichever worker or sub-process it runs in: all share a folder of
compiled programs (JAX's persistent compilation cache) that is new in each session and goes with it.

Long tests take two fixtures: `share`, so that a fixed tenth of them can run elsewhere, and `figure`, for their table.
"""

import atexit
import gc
import json
import os
import shutil
import subprocess
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "BYOL_JAX_VERIFY_IN_FLOAT64_ALONE", "1"
)  # interop/trace/verification/verify.py; its own tests unset it
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and sub-processes take over the environment
    compiled = tempfile.mkdtemp(prefix="byol_jax_compiled_")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }

import jax
import pytest
from hypothesis import settings

gc.set_threshold(
    100_000, 20, 50
)  # tracing makes millions of objects that last: 13 % of the time went into looking at them
settings.register_profile("no_clock", deadline=None)  # other work on the machine must not fail a test
settings.load_profile("no_clock")
if os.environ["JAX_PLATFORMS"] == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    parser.addoption("--part", type=int, default=1, help="of the long tests' cases run one in PART, always the same")
    parser.addoption("--figures", help="file that the long tests' figures are added to, a line of JSON each")


def pytest_collection_modifyitems(config, items):
    """Files with slow tests come first: quick ones are left for whichever worker is ready at the end.

    With --part, a long test that is one case, `long(tenth=False)`, is left out.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if config.getoption("--part") > 1:
        marks = {item: item.get_closest_marker("long") for item in items}
        left_out = [item for item, mark in marks.items() if mark and not mark.kwargs.get("tenth", True)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def share(request):
    """`share(1000)`: how many of a long test's cases to run; `share([...])`: which. All of them, or one in --part."""
    part = request.config.getoption("--part")

    def of(cases):
        return max(1, cases // part) if isinstance(cases, int) else cases[::part]

    return of


@pytest.fixture(scope="module", autouse=True)
def compiled_functions_forgotten():
    """Else a worker keeps every compiled function of every file it has run: 7 GB towards the end of `make test`."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def commit(request):
    """The commit that the files are at; "+ changes" where the code, tests or build differ from it."""

    def git(*arguments):
        command = ["git", "-C", str(request.config.rootpath), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "byol_jax", "interop", "tests", "pyproject.toml", "constraints.txt")
    return git("rev-parse", "--short=10", "HEAD") + (" + changes" if changed else "")


@pytest.fixture
def figure(request):
    """`figure("kill -9 while saving", cases=20, result="the newest is whole")`: a row of docs/long.md."""
    path = request.config.getoption("--figures")

    def add(what, *, cases, result):
        if path:
            test, at = request.node.nodeid.split("[")[0], request.getfixturevalue("commit")
            row = {"what": what, "cases": cases, "result": result, "test": test, "commit": at}
            absolute = request.config.rootpath / path  # the test may stand in a folder of its own
            with open(absolute, "a", encoding="utf-8") as file:  # whole lines, so that several workers may add
                file.write(json.dumps(row) + "\n")

    return add
