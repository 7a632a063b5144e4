"""BYOL in JAX: wrap any image network, train it on unlabelled images, give the weights back.

Names are loaded when they are first used (Scientific Python's SPEC 1); `__init__.pyi` lists them. Importing this
package alone loads neither jax nor flax.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
