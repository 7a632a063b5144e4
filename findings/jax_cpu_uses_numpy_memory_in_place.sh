#!/usr/bin/env bash
# jax.device_put on a CPU uses NumPy's memory in place where it starts at a multiple of 64 bytes, also when it is told
# may_alias=False. A JAX array, which is immutable, then changes with the buffer that it was made from; jnp.asarray copies.
#
# jax and jaxlib 0.10.2, numpy 2.4.6. A loader that refills one aligned buffer (pinned memory, a memory map) gives a step
# that runs asynchronously the numbers of a later batch. Whether memory is aligned is left to the allocator, so a program
# may be right for years.
#
# Seen:  device_put 2.0   device_put(may_alias=False) 2.0   jnp.asarray 1.0   device_put, 4 bytes further 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np


def buffer(offset):
    """1,024 float32 that start `offset` bytes behind a multiple of 64."""
    room = np.empty(4096 + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    return room[start : start + 4096].view(np.float32)


def seen(convert, offset=0):
    """The value that the array has after its source was refilled with 2."""
    source = buffer(offset)
    source[:] = 1
    array = jax.block_until_ready(convert(source))
    source[:] = 2
    return float(array[0])


found = {
    "device_put": seen(jax.device_put),
    "device_put(may_alias=False)": seen(lambda x: jax.device_put(x, may_alias=False)),
    "jnp.asarray": seen(jax.numpy.asarray),
    "device_put, 4 bytes further": seen(jax.device_put, 4),
}
print("   ".join(f"{name} {value}" for name, value in found.items()))
assert list(found.values()) == [2.0, 2.0, 1.0, 1.0], "this has changed"
PYTHON
