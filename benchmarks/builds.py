"""Is any network's step slower than it was? Two checkouts of byol_jax, network by network, in turns:

    git worktree add ../before COMMIT
    python benchmarks/builds.py ../before [--network NAME] [--rounds N] [--out DIR]

Twelve networks of torchvision and timm, one of each kind, 64 px, 8 images, traced without verification; both checkouts
with the libraries of this environment. A network that got more than 3 % slower, by minima, is marked.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import run_command
from benchmarks.harness.machine import ROOT, available_cores, describe
from benchmarks.harness.summary import order, ratio, summarise
from benchmarks.harness.table import markdown
from benchmarks.harness.turns import add_turns, read, report
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser
from byol_jax.errors import ConfigurationError

__all__ = ["NETWORKS", "main", "table"]

COMMAND = "python benchmarks/builds.py"
USAGE = "BEFORE [--network NAME] [--rounds N] [--chunk N] [--out DIR] [--json]"
IMAGE_SIZE, BATCH_SIZE = 64, 8

NETWORKS = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:vgg11_bn",
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:regnet_x_400mf",
    "torchvision:swin_t",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
)
OPTIONS = {
    "torchvision:googlenet": {"aux_logits": False, "init_weights": False},
    "timm:vit_tiny_patch16_224": {"img_size": IMAGE_SIZE},
}
SLOWER = 1.03

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
"""glibc's settings of `byol_jax.cli.allocator`, which an older checkout may not have, for both alike."""


def main(words: list[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "A training step before and now, network by network.")
    parser.add_argument("before", type=Path, metavar="BEFORE", help="another checkout of byol_jax")
    choice = values.one_of([*NETWORKS, "all"])
    parser.add_argument("--network", type=choice, default="all", metavar="NAME", help=f"{', '.join(NETWORKS)} or all")
    add_turns(parser, chunk=3, what="steps")
    options = read(parser, words)
    if not (options.before / "byol_jax" / "__init__.py").is_file():
        raise ConfigurationError(f"{options.before}: no checkout of byol_jax; make one by git worktree add")
    return options


def _run(options: argparse.Namespace) -> int:
    networks = NETWORKS if options.network == "all" else [options.network]
    machine = describe() | {"threads": available_cores(), "load_average": [os.getloadavg()], "device": "cpu"}
    machine |= {"allocator": "freed memory kept in the process", "before": _commit(options.before)}
    raw = {name: _measure(name, options) for name in networks}
    machine["load_average"].append(os.getloadavg())
    text = table(raw, machine["before"], time.strftime("%Y-%m-%d"))
    report(options, text, command=f"{COMMAND} {options.before}", names=["network"], raw=raw, machine=machine)
    return 0


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or checkout.name


def _measure(network: str, options: argparse.Namespace) -> dict[str, Any]:
    """By "before" and "now": `ready_seconds`, until the first step was done, and `seconds` of each round."""
    library, name = network.split(":")
    own = {"library": library, "name": name, "options": OPTIONS.get(network, {})}
    job = own | {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE}
    results: dict[str, dict[str, Any]] = {}
    processes: dict[str, subprocess.Popen] = {}
    try:
        for build, checkout in {"before": options.before.resolve(), "now": ROOT}.items():
            print(f"{network}: {build}: trace and compilation", file=sys.stderr, flush=True)
            processes[build] = _start(checkout, job)
            results[build] = _answer(network, build, processes[build]) | {"seconds": []}
        for turn in range(options.rounds):
            for build in order([*processes], turn):
                with suppress(BrokenPipeError):  # the answer that is missing says more
                    print(options.chunk, file=processes[build].stdin, flush=True)
                results[build]["seconds"].append(_answer(network, build, processes[build])["seconds"])
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return results


def _start(checkout: Path, job: dict[str, Any]) -> subprocess.Popen:
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / "harness" / "one_build.py"), json.dumps(job)]
    surroundings = os.environ | {"PYTHONPATH": str(checkout), "JAX_ENABLE_COMPILATION_CACHE": "false"} | KEEP_MEMORY
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=checkout, env=surroundings, **pipes)


def _answer(network: str, build: str, process: subprocess.Popen) -> dict[str, Any]:
    assert process.stdout is not None
    if line := process.stdout.readline():
        return json.loads(line)
    raise RuntimeError(f"{network}, {build}: ended with {process.wait()}; its last words stand above")


def table(raw: dict[str, dict[str, Any]], before: str, date: str) -> str:
    """Markdown: a line for each network."""
    rows = [["network", "before s/step", "now", "now / before", "until the first step, started first", "now, second"]]
    for name, results in raw.items():
        old, new = (
            summarise([one for turn in results[build]["seconds"] for one in turn]) for build in ("before", "now")
        )
        own = ratio(new, old)
        mark = " slower" if own.minimum > SLOWER else ""
        row = [name, f"{old.minimum:.4f}", f"{new.minimum:.4f}", f"{own.minimum:.2f} / {own.median:.2f}{mark}"]
        rows.append([*row, *(f"{results[build]['ready_seconds']:.1f}" for build in ("before", "now"))])
    return (
        f"# A step before and now, {date}\n\nBefore: {before}. {IMAGE_SIZE} px, {BATCH_SIZE} images, float32, heads of "
        "4096 and 256, Adam, no augmentation, traced without verification; in turns. Seconds: minima; ratios: minima / "
        f"medians.\n\n{markdown(rows)}"
    )


if __name__ == "__main__":
    sys.exit(main())
