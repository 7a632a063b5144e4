"""Networks written in Flax as encoders: `from_linen` for flax.linen, `from_nnx` for flax.nnx.

Both give three pure functions around a module that is never changed. How each kind of module is taken apart is in
`linen` and `nnx` beside this file; networks written as pure functions need no adapter: they are an `Encoder`.
"""

from byol_jax.nets.linen import from_linen
from byol_jax.nets.nnx import from_nnx

__all__ = ["from_linen", "from_nnx"]
