#!/usr/bin/env bash
# On a CPU, the compiled product of a [2, 3] or [3, 3] matrix with 32,769 rows of three numbers, reduced over the
# matrix's rows at once, is wrong from row 32,768 on. With 32,768 rows, with four rows in the matrix, or without the
# reduction in the same function it is right: one more image, point or pixel changes numbers by their own size.
#
# jax and jaxlib 0.10.2, numpy 2.4.6, x86-64; jaxlib 0.9.0.1 is right (the script runs both), 0.9.2 is not. It is what
# the scores of rows of three numbers or of pixels' colours look like: einsum("kd,nd->kn", w, x).max(0).
#
# Seen:  0.10.2, 32,768 rows: 3e-07   32,769 rows: 3, in the last   40,001 rows: 8, 7,228 rows from 32,768 on
#        a matrix of four rows, or reduced outside: below 1e-05   0.9.0.1: below 1e-05 throughout
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
for release in 0.9.0.1 0.10.2; do
  "$folder/venv/bin/pip" install --quiet numpy==2.4.6 "jax==$release" "jaxlib==$release"
  "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np


def product(w, x):
    return jnp.einsum("kd,nd->kn", w, x)


def highest(w, x):
    return product(w, x).max(0)


def errors(count, rows, apart=False):
    """Of each of `count` maxima, the distance from the one in float64."""
    random = np.random.default_rng(0)
    x, w = (random.standard_normal((n, 3)).astype(np.float32) for n in (count, rows))
    exact = (w.astype(np.float64) @ x.T).max(0)
    found = jnp.max(jax.jit(product)(w, x), 0) if apart else jax.jit(highest)(w, x)
    return np.abs(np.asarray(found) - exact)


few, more, many = errors(32_768, 2), errors(32_769, 2), errors(40_001, 2)
wrong = np.flatnonzero(many > 1e-3)
print(f"jaxlib {jax.__version__}: 32,768 rows {few.max():.0e}   32,769 rows {more.max():.0e}   ", end="")
print(f"40,001 rows {many.max():.0e}, {len(wrong):,} rows from {min(wrong, default=0):,} on")
assert few.max() < 1e-5
assert errors(32_769, 4).max() < 1e-5, "a matrix of four rows"
assert errors(32_769, 2, apart=True).max() < 1e-5, "reduced outside"
if jax.__version__ == "0.9.0.1":
    assert max(more.max(), many.max()) < 1e-5
else:
    assert (more[:-1] < 1e-5).all(), "the rows before are right"
    assert more[-1] > 0.1, "this has changed"
    assert len(wrong) > 1000 and wrong[0] >= 32_768, "this has changed"
PYTHON
done
