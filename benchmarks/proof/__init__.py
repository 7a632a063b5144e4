"""Does BYOL learn here? `python -m benchmarks.proof` runs the list in items.py and writes a page about it."""
