"""torch's operators in JAX, one small function each, one file a kind; `table.py` has them all by name.

`operator.py` says what an operator is and how most of them are written.
"""
