#!/usr/bin/env bash
# On a CPU, x - x @ C with a uniform constant matrix C, squared and summed, is NaN or 1e31 under jit, and right operation
# by operation. The constant has to be one that XLA sees (jnp.full inside the function); as an argument it is right.
#
# jax and jaxlib 0.10.2, numpy 2.4.6, x86-64; from 128 rows of 64 on. It is what centring by a product looks like:
# subtracting a mean that is written as a matrix.
#
# Seen:  rows 32: error 0.0   rows 128, constant inside: no finite number or over 1e20   as an argument: under 0.01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np


def spread(x, mean):
    return jnp.square(x - x @ mean).sum()


def spread_with_constant(x):
    return spread(x, jnp.full((64, 64), 1 / 64, x.dtype))


def error(function, rows, *more):
    x = np.random.default_rng(0).standard_normal((rows, 64)).astype(np.float32)
    exact = np.square(x - x.mean(1, keepdims=True, dtype=np.float64)).sum()
    return abs(float(jax.jit(function)(x, *more)) / exact - 1)


mean = np.full((64, 64), 1 / 64, np.float32)
few, many = error(spread_with_constant, 32), error(spread_with_constant, 128)
argument = error(spread, 128, mean)
print(f"relative error: rows 32 {few:.0e}   rows 128 {many:.0e}   as an argument {argument:.0e}")
assert few < 1e-5
assert not many < 1e20, "this has changed"
assert argument < 1e-5
PYTHON
