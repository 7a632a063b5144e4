"""What the benchmarks share: contenders in turns, machine, tables, results folders. None of it is run by hand."""
