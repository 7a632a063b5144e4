"""Where does a step's time go? Shares by operator, forward and backward, of one workload's step on this machine:

    python benchmarks/operators.py mobilenet_v3_small [--steps N] [--native] [--out FILE]

JAX's profiler times every instruction of the compiled step; each is known by the operation of the program that it was
compiled from. A fusion counts as the operation that XLA named it after, with all that was fused into it. Shares are of
the time that instructions took, on all threads together; instructions that only call others are left out.
"""

import argparse
import collections
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import run_command
from benchmarks.harness.contenders import build_module, jax_step
from benchmarks.harness.table import markdown
from benchmarks.harness.workloads import WORKLOADS, Resnet
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser

__all__ = ["Origin", "main", "origins", "shares", "table"]

COMMAND = "python benchmarks/operators.py"
CALLERS = ("call", "while", "conditional")
"""Instructions whose time is that of others."""

TRACED = "--xla_cpu_enable_xprof_traceme=true"


class Origin(NamedTuple):
    """What an instruction was compiled from: the opcode, the primitive of JAX, and the pass of the training step."""

    opcode: str
    primitive: str
    part: str


def main(words: list[str] | None = None) -> int:
    """Profiles and prints the table; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, "WORKLOAD [--steps N] [--native] [--out FILE]", "Where a training step's time goes.")
    parser.add_argument("workload", type=values.one_of([*WORKLOADS]), metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--steps", type=values.positive_int, default=5, metavar="N", help="steps to profile (5)")
    parser.add_argument("--native", action="store_true", help="a ResNet of byol_jax.nets instead of the traced module")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the table goes too")
    return parser.read(words)


def _run(options: argparse.Namespace) -> int:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {TRACED}"
    from byol_jax.cli.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    import interop
    from byol_jax import nets

    workload = WORKLOADS[options.workload]
    if options.native and isinstance(workload.network, Resnet):
        encoder = nets.resnet(workload.network.stages, block=workload.network.block)
    else:
        encoder = interop.from_torch_module(build_module(workload), image_size=workload.image_size, verify=False)
    train, state, images = jax_step(encoder, workload)
    compiled = train.lower(state, images).compile()
    for _ in range(3):
        state, _ = jax.block_until_ready(compiled(state, images))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            for _ in range(options.steps):
                state, _ = jax.block_until_ready(compiled(state, images))
            seconds = (time.perf_counter() - start) / options.steps
        events = _events(folder)
    spent = shares(events, origins(compiled.as_text()))
    heading = f"{workload.title}: {seconds * 1e3:.1f} ms a step, profiled; {len(events)} kinds of instructions"
    text = f"{heading}\n\n{table(spent, options.steps)}\n"
    if options.out is not None:
        options.out.write_text(text)
    print(text, end="")
    return 0


def _events(folder: str) -> dict[str, float]:
    """Nanoseconds by instruction, of everything that the profiler saw on the CPU."""
    from jax.profiler import ProfileData

    spent: dict[str, float] = collections.defaultdict(float)
    for path in Path(folder).rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if any(key == "hlo_op" for key, _ in event.stats) or event.name.startswith("wrapped_"):
                        spent[event.name] += event.duration_ns
    return dict(spent)


def origins(program: str) -> dict[str, Origin]:
    """By instruction, what it was compiled from; `program` is the compiled program's text.

    Example:
        >>> line = '  %dot.3 = f32[2,2] dot(%a, %b), metadata={op_name="jit(step)/transpose(jvp(net))/dot_general"}'
        >>> origins(line)["dot.3"]
        Origin(opcode='dot', primitive='dot_general', part='backward')
    """
    found = {}
    for line in program.splitlines():
        if not (match := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (?:\([^=]*?\)|\S+) ([\w\-]+)\(", line)):
            continue
        name, opcode = match.groups()
        path = next(iter(re.findall(r'op_name="([^"]*)"', line)), "")
        found[name] = Origin(opcode, path.rpartition("/")[2] or opcode, _part(path))
    return found


def _part(path: str) -> str:
    """The pass of a step, as an operation's path tells it: what isn't differentiated and is no gradient is "other"."""
    if "transpose(" in path:
        return "backward"
    return "forward" if "jvp(" in path else "other"


def shares(events: Mapping[str, float], known: Mapping[str, Origin]) -> dict[tuple[str, str, str], float]:
    """Nanoseconds by (part, primitive, opcode)."""
    spent: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    for name, nanoseconds in events.items():
        origin = known.get(name, Origin(re.sub(r"[.\d]+$", "", name), "unknown", "other"))
        if origin.opcode not in CALLERS:
            spent[origin.part, origin.primitive, origin.opcode] += nanoseconds
    return dict(spent)


def table(spent: Mapping[tuple[str, str, str], float], steps: int, *, least: float = 0.005) -> str:
    """The shares in Markdown, largest first; what is below `least` of all is one line."""
    whole = sum(spent.values())
    rows: list[Iterable[Any]] = [["pass", "operation", "instruction", "ms a step", "share"]]
    rest = 0.0
    for key, nanoseconds in sorted(spent.items(), key=lambda item: -item[1]):
        if nanoseconds < least * whole:
            rest += nanoseconds
        else:
            rows.append([*key, f"{nanoseconds / steps / 1e6:.2f}", f"{nanoseconds / whole:.1%}"])
    rows.append(["", "everything else", "", f"{rest / steps / 1e6:.2f}", f"{rest / whole:.1%}"])
    return markdown([list(row) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
