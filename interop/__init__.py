"""Weights between JAX and PyTorch, exactly, from files that may be hostile.

Names are loaded when they are first used (Scientific Python's SPEC 1); `__init__.pyi` lists them. Importing this
package alone loads neither jax, flax nor torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
