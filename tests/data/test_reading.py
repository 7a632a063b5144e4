"""Several processes read every image of an epoch once between them, also where their number changes on the way."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol_jax.data import batch_indices
from tests.processes import free_address, run_together
from tests.shard_files import Picture, write_parquet, write_tars, write_tfrecords

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
COUNTS = {"photos": 50, "images.npy": 48, "shards": 50, "rows.parquet": 50, "a.tfrecord": 50}
"""Six batches of 8 an epoch: of 50 images two are left out in each, other ones in the next."""
BATCH, SEED, EPOCH = 8, 7, 6


def read(out: Path, count: int, first: int, last: int, data: list[Path]) -> list[dict]:
    """What each of `count` processes of two devices read in steps `first` to `last` - 1."""
    out.mkdir()
    address = free_address()
    environment = os.environ | {"PYTHONPATH": PATHS, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    words = [address, str(out), str(first), str(last), *map(str, data)]
    of_each = [[str(number), str(count), *words] for number in range(count)]
    run_together(HERE / "read_in_processes.py", of_each, environment, timeout=200)
    return [json.loads((out / f"{number}.json").read_text()) for number in range(count)]


def steps(found: list[dict], name: str) -> list[list[list[int]]]:
    """For each step, what each process asked its dataset for."""
    return [list(parts) for parts in zip(*(process[name]["asked"] for process in found), strict=True)]


def check_epoch(read_in_steps: list[list[list[int]]], count: int) -> None:
    """No image twice, by whichever process; none lacks but those of the incomplete batch."""
    seen = [image for parts in read_in_steps for part in parts for image in part]
    assert len(read_in_steps) == EPOCH
    assert len(set(seen)) == len(seen) == count // BATCH * BATCH


@pytest.mark.slow
def test_every_image_of_an_epoch_is_read_by_one_process(tmp_path: Path) -> None:
    folder, array = tmp_path / "photos", tmp_path / "images.npy"
    folder.mkdir()
    for number in range(COUNTS["photos"]):
        Image.new("RGB", (8, 8), (number, number, number)).save(folder / f"{number:03}.png")
    images = np.arange(COUNTS["images.npy"], dtype=np.uint8)[:, None, None, None]
    np.save(array, np.broadcast_to(images, (len(images), 8, 8, 3)))
    found = [Picture(path.stem, path.read_bytes(), 0) for path in sorted(folder.iterdir())]
    shards = write_tars(tmp_path / "shards", found)
    rows = write_parquet(tmp_path / "rows.parquet", found)
    records = write_tfrecords(tmp_path / "a.tfrecord", [one.data for one in found])
    sources = [folder, array, shards, rows, records]
    two = read(tmp_path / "two", 2, 0, 2 * EPOCH, sources)
    four = read(tmp_path / "four", 4, 4, 2 * EPOCH, sources)  # a run of two goes on after step 4
    for name, count in COUNTS.items():
        by_two, by_four = steps(two, name), steps(four, name)
        check_epoch(by_two[:EPOCH], count)
        check_epoch(by_two[EPOCH:], count)
        check_epoch(by_four[EPOCH - 4 :], count)
        check_epoch(by_two[:4] + by_four[: EPOCH - 4], count)
        for first, found, read_in_steps in ((0, two, by_two), (4, four, by_four)):
            for step, parts in enumerate(read_in_steps, start=first):
                whole = batch_indices(step, seed=SEED, count=count, batch_size=BATCH).tolist()
                assert [image for part in parts for image in part] == whole, "in the order of one process"
                rows = [process[name]["rows"][step - first] for process in found]
                assert sum(map(len, rows)) == BATCH, "a row lies in one process"
                assert {int(row): image for part in rows for row, image in part.items()} == dict(enumerate(whole))
