#!/usr/bin/env bash
# XLA:CPU computes the gradient along residual connections anew for every layer: what is added up over all later layers is
# fused into each of its readers, so that the compiled program grows with the square of the depth, and its time with it (a
# ViT-Tiny's training step took 1.09 s, and 0.68 s with each layer's sum stored once). jax.lax.optimization_barrier, which
# is said to keep operations apart, changes not one instruction of it. (jax and jaxlib 0.10.2, run here. With 0.12.0.1 the
# program is the same, and the barrier has its effect: 8,002 instructions for 21,984, six operands for 129.)
#
# The program: the gradient of sum(y²), y after `depth` layers x + norm(x) @ w. With and without a barrier on each layer's x.
#
# Seen, depth: lines of the compiled program / operands of the widest fusion, without a barrier, with one
#   16: 2729 / 32, 2729 / 32   32: 7314 / 65, 7314 / 65   64: 21858 / 129, 21858 / 129
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re

import jax
import jax.numpy as jnp


def norm(x):
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-6)


def total(weights, x, barrier):
    for w in weights:
        x = jax.lax.optimization_barrier(x) if barrier else x
        x = x + norm(x) @ w
    return jnp.sum(jnp.square(x))


def compiled_size(depth, barrier):
    weights = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * depth
    x = jax.ShapeDtypeStruct((128, 64), jnp.float32)
    lines = jax.jit(jax.grad(lambda weights, x: total(weights, x, barrier))).lower(weights, x).compile().as_text().splitlines()
    fusions = [line.split(" fusion(")[1].split("), kind")[0] for line in lines if " fusion(" in line]
    return sum(" = " in line for line in lines), max(len(re.findall(r"%[\w.\-]+", operands)) for operands in fusions)


sizes = {depth: [compiled_size(depth, barrier) for barrier in (False, True)] for depth in (16, 32, 64)}
print("   ".join(f"{depth}: {', '.join(f'{n} / {widest}' for n, widest in both)}" for depth, both in sizes.items()))
plain = [sizes[depth][0] for depth in (16, 32, 64)]
assert plain[2][0] / plain[1][0] > 2.9, "doubling the depth no longer triples the program"
assert [widest for _, widest in plain] == [32, 65, 129], "the widest fusion no longer reads all later layers"
assert all(without == with_one for without, with_one in sizes.values()), "a barrier keeps the layers apart now"
PYTHON
