"""What do bfloat16 and rematerialisation save in a step, and what do they cost?

    python benchmarks/precision.py [--network NAME] [--image-size N] [--batch-size N] [--rounds N] [--out DIR]

One whole training step of byol_jax in float32 and in bfloat16, as it is and with `remat`, in turns: native ResNet-18
and ResNet-50, a native vision transformer, and a torch module that is traced. Memory is what XLA sets aside for the
compiled step beside its arguments (`memory_analysis`), seconds are measured. Augmentation off, Adam, heads of 4096 and
256.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import run_command
from benchmarks.harness.contenders import Contender, jax_device, jax_step
from benchmarks.harness.summary import ratio, summarise
from benchmarks.harness.table import flat, markdown
from benchmarks.harness.turns import add_turns, measure_in_turns, read, report
from benchmarks.harness.workloads import Workload, from_json
from byol_jax.cli import values
from byol_jax.cli.networks import any_network_name, find_network
from byol_jax.cli.parsing import Parser
from byol_jax.nets.remat import KEEP_BARRIERS

__all__ = ["CONTENDERS", "JOBS", "build", "main", "table"]

COMMAND = "python benchmarks/precision.py"
USAGE = "[--network NAME] [--image-size N] [--batch-size N] [--rounds N] [--chunk N] [--out DIR] [--json]"

JOBS = {
    job.name: job
    for job in (
        Workload("resnet18", "ResNet-18, 32 px, batch 64", "resnet18", "avgpool", 32, 64),
        Workload("resnet50", "ResNet-50, 128 px, batch 8", "resnet50", "avgpool", 128, 8),
        Workload("vit_s16", "ViT-S/16, 128 px, batch 8", "vit_s16", "pooled", 128, 8),
        Workload(
            "torchvision:mobilenet_v3_small",
            "torchvision's mobilenet_v3_small, traced, 64 px, batch 32",
            "torchvision:mobilenet_v3_small",
            "avgpool",
            64,
            32,
        ),
    )
}
"""The sizes of `step.py`, which two CPU cores can do; an accelerator wants larger ones, by the options."""

CONTENDERS = {
    "float32": {"dtype": "float32", "remat": False},
    "float32, remat": {"dtype": "float32", "remat": True},
    "bfloat16": {"dtype": "bfloat16", "remat": False},
    "bfloat16, remat": {"dtype": "bfloat16", "remat": True},
}


def main(words: list[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "Memory and time of a step in float32 and bfloat16, with and without remat.")
    positive = {"type": values.positive_int, "metavar": "N"}
    parser.add_argument(
        "--network", type=_network, default="all", metavar="NAME", help=f"{', '.join(JOBS)} or any other's name (all)"
    )
    parser.add_argument("--hidden-layer", type=values.hidden_layer, default=-2, metavar="L", help="another's (-2)")
    parser.add_argument("--image-size", **positive, help="side in pixels (as listed; of another network 64)")
    parser.add_argument("--batch-size", **positive, help="images a step (as listed; of another network 16)")
    add_turns(parser, chunk=3, what="steps")
    return read(parser, words)


def _network(word: str) -> str:
    return word if word == "all" else any_network_name(word)


def _jobs(options: argparse.Namespace) -> dict[str, Workload]:
    names = JOBS if options.network == "all" else [options.network]
    return {name: _sized(name, options) for name in names}


def _sized(name: str, options: argparse.Namespace) -> Workload:
    job = JOBS.get(name) or Workload(name, name, name, options.hidden_layer, 64, 16)
    size, batch = options.image_size or job.image_size, options.batch_size or job.batch_size
    title = f"{job.title.split(', ')[0]}, {size} px, batch {batch}"
    return replace(job, title=title, image_size=size, batch_size=batch)


def _run(options: argparse.Namespace) -> int:
    jobs = _jobs(options)
    raw, machine = measure_in_turns(jobs, CONTENDERS, options, builder="benchmarks.precision")
    facts = {name: {"title": jobs[name].title, "results": results} for name, results in raw.items()}
    machine["device"] = next(iter(next(iter(raw.values())).values()))["device"]
    names = [
        "network",
        *(name for name in ("hidden_layer", "image_size", "batch_size") if getattr(options, name) is not None),
    ]
    text = table(facts, time.strftime("%Y-%m-%d"))
    report(options, text, command=COMMAND, names=names, raw=facts, machine=machine)
    return 0


def table(facts: dict[str, Any], date: str) -> str:
    """Markdown: for each network a line for each way; memory and time beside float32's without remat."""
    parts = [
        f"# bfloat16 and remat, {date}\n\nOne training step, in turns. Temporaries: what XLA sets aside for the"
        " compiled step beside state and images. Ratios are to float32 as it is; of times by minima / by medians."
    ]
    for one in facts.values():
        rows = [
            ["", "temporaries MiB", "to float32", "state and images MiB", "min s/step", "median", "IQR", "to float32"]
        ]
        usual = one["results"]["float32"]
        for name, result in one["results"].items():
            own, bytes_ = summarise(flat(result)), result["temporary_bytes"]
            rows.append(
                [
                    name,
                    f"{bytes_ / 2**20:,.1f}",
                    f"{bytes_ / usual['temporary_bytes']:.2f}",
                    f"{result['argument_bytes'] / 2**20:,.1f}",
                    *(f"{number:.4f}" for number in own),
                    " / ".join(f"{number:.2f}" for number in ratio(own, summarise(flat(usual)))),
                ]
            )
        parts += [f"## {one['title']}", markdown(rows)]
    return "\n\n".join(parts)


def build(name: str, fields: dict[str, Any]) -> Contender:
    """The contender of this name, ready for its first step of a workload, whose `network` is a name."""
    import jax

    workload, way = from_json(fields), CONTENDERS[name]
    make = find_network(str(workload.network), options={"remat": True} if way["remat"] else {})
    encoder = make(image_size=workload.image_size, channels=3, seed=0, start=None).encoder
    train, state, images = jax_step(encoder, workload, dtype=way["dtype"])
    on_cpu = jax.default_backend() == "cpu"
    compiled = train.lower(state, images).compile(KEEP_BARRIERS if way["remat"] and on_cpu else None)
    memory = compiled.memory_analysis()
    assert memory is not None
    now: dict[str, Any] = {"state": state, "metrics": {}}

    def step() -> None:
        now["state"], now["metrics"] = jax.block_until_ready(compiled(now["state"], images))

    def facts() -> dict[str, Any]:
        sizes = {"temporary_bytes": memory.temp_size_in_bytes, "argument_bytes": memory.argument_size_in_bytes}
        return sizes | {"loss": float(now["metrics"]["loss"])}

    return Contender(step, jax_device(), facts)


if __name__ == "__main__":
    sys.exit(main())
