#!/usr/bin/env bash
# Pillow opens an uncompressed TIFF of three 16-bit planes (PlanarConfiguration 2) as an 8-bit RGB image whose pixels are
# the low and the high bytes of its values in turn: no error, no warning, stripes for pictures.
#
# pillow 13.0.0, file written by tifffile 2026.3.3, numpy 2.4.6. Contiguous 16-bit RGB is read as its high bytes, which is
# what one expects. Such files come from microscopes and remote sensing.
#
# Seen:  mode RGB   red, 10,000 everywhere: [16, 39]   green, 30,000: [48, 117]   blue, 60,000: [96, 234]
# (10,000 is 39 * 256 + 16)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 pillow==13.0.0 tifffile==2026.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import tempfile

import numpy as np
import tifffile
from PIL import Image

values = (10_000, 30_000, 60_000)
planes = np.stack([np.full((32, 32), value, np.uint16) for value in values])
with tempfile.TemporaryDirectory() as folder:
    tifffile.imwrite(f"{folder}/planar.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(f"{folder}/contiguous.tif", np.moveaxis(planes, 0, -1), photometric="rgb")
    with Image.open(f"{folder}/planar.tif") as image:
        mode, planar = image.mode, np.asarray(image)
    with Image.open(f"{folder}/contiguous.tif") as image:
        contiguous = np.asarray(image)
levels = [np.unique(planar[..., channel]).tolist() for channel in range(3)]
print("mode", mode, *(f"  {value:,}: {seen}" for value, seen in zip(values, levels)))
assert (mode, planar.shape, planar.dtype) == ("RGB", (32, 32, 3), np.uint8)
assert levels == [[value % 256, value // 256] for value in values], "this has changed"
assert contiguous[0, 0].tolist() == [value // 256 for value in values]
PYTHON
