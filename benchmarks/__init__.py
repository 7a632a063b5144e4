"""Measurements, one file for each question; `benchmarks/README.md` says how they are made."""
