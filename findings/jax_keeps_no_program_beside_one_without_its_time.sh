#!/usr/bin/env bash
# JAX's persistent compilation cache with a size limit keeps nothing more, for good, once one program in it lacks its time
# of last use: each later program is compiled, a warning says that it can't be written, and nothing is. A process leaves
# such a program behind that is killed between writing the two files. Without a size limit there are no times.
#
# jax and jaxlib 0.10.2, filelock 3.20.0. Whoever bounds the cache by jax_compilation_cache_max_size has to remove the
# programs without a time (NAME-cache without NAME-atime) before JAX looks.
#
# Seen:  programs after the first process 1; without its time, after a second process with another program 1, and
#        UserWarning: Error writing persistent compilation cache entry ... FileNotFoundError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 filelock==3.20.0
cd "$folder"
cat > compile.py <<'PYTHON'
import sys
import warnings

import jax

warnings.simplefilter("always")
jax.config.update("jax_compilation_cache_dir", "cache")
jax.config.update("jax_compilation_cache_max_size", 2**30)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * float(sys.argv[1]))(1.0)
PYTHON
export JAX_PLATFORMS=cpu
count() { find cache -name "*-cache" | wc -l; }
"$folder/venv/bin/python" compile.py 2
before=$(count)
find cache -name "*-atime" -delete
"$folder/venv/bin/python" compile.py 3 2>said
echo "programs: $before, then $(count)"
grep -m 1 -o "Error writing persistent compilation cache entry.*FileNotFoundError" said
[ "$before" = "$(count)" ] || { echo "this has changed"; exit 1; }
