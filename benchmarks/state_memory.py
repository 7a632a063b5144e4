"""How much of a training state does each device hold, whole and with target and optimiser state spread?

    python benchmarks/state_memory.py [--compiled]

The first table is arithmetic: shapes and dtypes of the state, cut as `byol_jax.parallel.state_shardings` cuts them, on
meshes of devices that aren't there. Nothing is computed. With --compiled a second one: what XLA says of the compiled
step of a ResNet-18 at 32 px on eight simulated devices, and what the devices send each other. float32, heads of 4096
and 256.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.aot import collectives
from benchmarks.harness.command import run_command
from benchmarks.harness.table import markdown
from byol_jax.cli.parsing import Parser

__all__ = ["COUNTS", "compiled_rows", "main", "state_rows"]

COMMAND = "python benchmarks/state_memory.py"
USAGE = "[--compiled]"

COUNTS = (1, 8, 64)
"""Devices."""

BATCH = 64
"""Images of the compiled step."""


def main(words: list[str] | None = None) -> int:
    """Prints the tables; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "Bytes of a training state on each device, whole and spread.")
    parser.add_argument("--compiled", action="store_true", help="also compile a small step for eight simulated devices")
    return parser.read(words)


def _run(options: argparse.Namespace) -> int:
    flags = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"  # read when JAX looks for devices
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(markdown(state_rows()))
    if options.compiled:
        print(f"\n{markdown(compiled_rows())}")
    return 0


def state_rows() -> list[list[str]]:
    """MB on each device, a row for each network and optimiser."""
    import jax
    import optax
    from jax.sharding import AbstractMesh

    from byol_jax import lars, make_learner, nets, parallel

    head = [f"{count} device{'s' * (count > 1)}" for count in COUNTS]
    rows = [["state, MB on each device", "of it online", *head]]
    for network, encoder, layer in (
        ("ResNet-50", nets.resnet50(), "avgpool"),
        ("ViT-B/16", nets.vit_b16(), "pooled"),
    ):
        for name, optimizer in (("Adam", optax.adam(3e-4)), ("LARS", lars(0.2, weight_decay=1e-6))):
            learner = make_learner(encoder, image_size=224, hidden_layer=layer, optimizer=optimizer)
            state = jax.eval_shape(learner.init, jax.random.key(0))
            online = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.online))
            meshes = [AbstractMesh((count,), (parallel.AXIS,)) for count in COUNTS]
            held = [parallel.state_bytes(state, parallel.state_shardings(state, mesh)) for mesh in meshes]
            rows.append([f"{network}, {name}", *(f"{size / 1e6:,.0f}" for size in (online, *held))])
    return rows


def compiled_rows() -> list[list[str]]:
    """What XLA sets aside for a step on each of eight devices, and what they send each other."""
    import jax
    import jax.numpy as jnp
    import optax

    from byol_jax import make_learner, nets, parallel

    mesh = parallel.make_mesh()
    learner = make_learner(
        nets.resnet18(stem="cifar"),
        image_size=32,
        hidden_layer="avgpool",
        optimizer=optax.adam(3e-4),
        augment_fn=lambda key, image: image,
    )
    state = jax.eval_shape(learner.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32)
    rows = [["ResNet-18, 32 px, Adam, 8 devices", "state and images, MB", "set aside beside, MB", "sent, by kind"]]
    for name, options in (
        ("whole on each", {}),
        ("spread", {"state_shardings": parallel.state_shardings(state, mesh)}),
    ):
        compiled = parallel.jit(learner, mesh, **options).lower(state, images).compile()
        memory: Any = compiled.memory_analysis()
        sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes)
        sent = collectives(str(compiled.as_text()))
        kinds = "; ".join(f"{len(each)} {kind}, {sum(each) / 1e6:,.0f} MB" for kind, each in sorted(sent.items()))
        rows.append([name, *(f"{size / 1e6:,.1f}" for size in sizes), kinds])
    return rows


if __name__ == "__main__":
    sys.exit(main())
