"""Questions about speed, one file each; `benchmarks/README.md` says how they are answered."""
