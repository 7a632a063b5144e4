"""`python -m byol_jax` is `byol-jax`."""

import sys

from byol_jax.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
