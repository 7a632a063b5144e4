#!/usr/bin/env bash
# safetensors' NumPy writer stores a column-major array's memory under a row-major array's shape: a file that loads without
# an error and holds the numbers in another order. torch's writer refuses such tensors; the NumPy one says nothing.
#
# safetensors 0.8.0, numpy 2.4.6. np.asarray of a JAX array, a transposed kernel or a Fortran-ordered solver's result are
# such arrays. np.ascontiguousarray before save_file mends it.
#
# Seen:  written [[0, 3], [1, 4], [2, 5]]   read [[0, 1], [2, 3], [4, 5]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 safetensors==0.8.0
"$folder/venv/bin/python" - <<'PYTHON'
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

array = np.arange(6, dtype=np.int32).reshape(2, 3).T
with tempfile.TemporaryDirectory() as folder:
    save_file({"kernel": array}, f"{folder}/a.safetensors")
    read = load_file(f"{folder}/a.safetensors")["kernel"]
    save_file({"kernel": np.ascontiguousarray(array)}, f"{folder}/b.safetensors")
    mended = load_file(f"{folder}/b.safetensors")["kernel"]
print("written", array.tolist(), "  read", read.tolist())
assert read.shape == array.shape
assert read.tolist() == [[0, 1], [2, 3], [4, 5]], "this has changed"
assert mended.tolist() == array.tolist()
PYTHON
