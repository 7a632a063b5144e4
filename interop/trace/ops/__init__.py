"""torch's operators in JAX, a small function each, a file a kind; `table.py` names them all."""
