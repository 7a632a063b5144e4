"""One of several processes that read the same data together, as a run's loop does. Run by test_reading.py.

    read_in_processes.py NUMBER COUNT ADDRESS OUT FIRST LAST DATA...

Leaves OUT/NUMBER.json: for each of DATA, folders and .npy files, which images this process asked its dataset for in
steps FIRST to LAST - 1, and which image lies in which row of the whole batch on its devices. Image i is i everywhere.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax

from byol_jax import parallel
from byol_jax.parallel.placement import shard_in_place
from byol_jax.runs.source import Length, open_source

BATCH, SIZE, SEED = 8, 8, 7

number, count, address, out, first, last, *data = sys.argv[1:]
first, last = int(first), int(last)
parallel.initialize(num_processes=int(count), process_id=int(number), coordinator_address=address)
mesh = parallel.make_mesh()
found = {}

for path in data:
    options = {"image_size": SIZE, "num_channels": 3, "fit": "cover", "layout": None, "workers": 2}
    source = open_source(path, Length(last, None, BATCH), known=None, show=False, **options)
    asked: list[list[int]] = []

    def take(indices, *, workers=None, images=source.images, asked=asked):
        asked.append([int(index) for index in indices])
        return images.take(indices, workers=workers)

    watched = source._replace(images=replace(source.images, take=take))
    rows = []
    with watched.loader(
        start_step=first, seed=SEED, workers=2, place=lambda batch: shard_in_place(batch, mesh)
    ) as loader:
        for _ in range(first, last):
            batch = next(loader)
            assert batch.shape == (BATCH, *source.images.image_shape)
            shards = {
                shard.index[0].start or 0: [int(image.max()) for image in jax.device_get(shard.data)]
                for shard in batch.addressable_shards
            }
            rows.append({start + row: image for start, part in shards.items() for row, image in enumerate(part)})
    found[Path(path).name] = {"asked": asked[: last - first], "rows": rows}  # the loader is ahead by then

parallel.wait_for_all("read")
(Path(out) / f"{number}.json").write_text(json.dumps(found))
