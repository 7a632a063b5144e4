#!/usr/bin/env bash
# XLA:CPU compiles the kernel gradient of a depthwise convolution as that of a dense one, and picks the diagonal: its work
# and its temporary memory grow with the square of the channels, where the convolution itself grows with their number.
#
# jax and jaxlib 0.10.2 (run here) and 0.12.0.1 (the same numbers). At 256 channels the gradient of a 3 × 3 kernel takes
# 258 times the operations of the forward pass and 4.7 MB of temporary memory, for a result of 9 KB; a network like
# EfficientNet has layers of 1,152 channels.
#
# Seen, channels: operations of the gradient / of the convolution, bytes of temporary memory of the gradient
#   64: 15969728 / 247808, 294912   128: 63880064 / 495616, 1179648   256: 255522560 / 991232, 4718592
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp


def convolve(x, kernel):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes, feature_group_count=x.shape[3])


def kernel_gradient(x, kernel, dy):
    return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy)[0]


seen = {}
for channels in (64, 128, 256):
    x = jax.ShapeDtypeStruct((4, 8, 8, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 1, channels), jnp.float32)
    gradient = jax.jit(kernel_gradient).lower(x, kernel, x).compile()
    forward = jax.jit(convolve).lower(x, kernel).compile()
    work = [int(program.cost_analysis()["flops"]) for program in (gradient, forward)]
    seen[channels] = (*work, gradient.memory_analysis().temp_size_in_bytes)
print("   ".join(f"{c}: {gradient} / {forward}, {memory}" for c, (gradient, forward, memory) in seen.items()))
(small, half_small, memory), (large, half_large, more) = seen[64], seen[256]
assert 15.9 < large / small < 16.1, "the gradient's work no longer grows with the square"
assert half_large == 4 * half_small, "the forward pass no longer grows with the channels"
assert more == 16 * memory, "the gradient's memory no longer grows with the square"
PYTHON
