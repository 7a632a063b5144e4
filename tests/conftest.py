"""What every test runs under: eight CPU devices, strict dtype promotion, warnings as errors (pyproject.toml).

Importing a module of tests must not start a JAX computation: the number of devices is fixed by the first one.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import settings

settings.register_profile("no_clock", deadline=None)  # other work on the machine must not fail a test
settings.load_profile("no_clock")
if os.environ["JAX_PLATFORMS"] == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
