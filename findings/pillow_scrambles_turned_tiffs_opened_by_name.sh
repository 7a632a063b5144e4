#!/usr/bin/env bash
# Pillow scrambles an uncompressed TIFF whose orientation exchanges rows and columns (tag 274, 5 to 8) where it is opened
# by its name: no error, no warning, all pixels in wrong places. Opened as a file object, or compressed, it is right.
#
# pillow 13.0.0 (and 11.0.0, 12.0.0, 12.2.0). Such files come from scanners and cameras. Opened by name, an uncompressed
# image is mapped into memory with the size that it has upright, not the one that it is stored in.
#
# Seen:  3 x 2 pixels 0 1 2 / 3 4 5, orientation 6 (turn it clockwise)
#        by name  (3, 2) [4, 2, 0, 5, 3, 1]   as a file  (2, 3) [3, 0, 4, 1, 5, 2]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from PIL import Image

picture = Image.frombytes("L", (3, 2), bytes(range(6)))


def pixels(source):
    with Image.open(source) as image:
        image.load()
        return image.size, list(image.tobytes())


for orientation in range(1, 9):
    picture.save("plain.tif", tiffinfo={274: orientation})
    picture.save("lzw.tif", tiffinfo={274: orientation}, compression="tiff_lzw")
    by_name, compressed = pixels("plain.tif"), pixels("lzw.tif")
    with open("plain.tif", "rb") as file:
        as_file = pixels(file)
    assert as_file == compressed
    print(f"orientation {orientation}: by name {by_name}, as a file {as_file}")
    assert (by_name == as_file) == (orientation < 5), "this has changed"
PYTHON
