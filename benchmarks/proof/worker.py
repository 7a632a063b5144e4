"""One run in a process of its own, so that no run has another's memory, threads or compiled programs."""

import importlib
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.proof.items import Item

__all__ = ["run_alone", "run_item"]


def run_alone(item: Item, places: Mapping[str, Path | None], work: Path) -> dict[str, Any]:
    """`run_item` in a new process; what goes wrong there is raised here."""
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare) as pool:
        return pool.submit(run_item, item, places, work).result()


def _prepare() -> None:
    """Before any framework computes, and the same for all."""
    import jax

    from byol_jax.cli.allocator import keep_freed_memory

    keep_freed_memory()
    jax.config.update("jax_enable_compilation_cache", False)  # compiling counts, whatever was compiled before


def run_item(item: Item, places: Mapping[str, Path | None], work: Path) -> dict[str, Any]:
    """`result`, what the experiment found; `seconds` in all; and `data`, facts of the images.

    These are `count`, to train on and to test on; `most_frequent`, the largest label's share of the test images; and
    `sha256`.

    Args:
        item: the run.
        places: folders of the sets of images, by name, as the user gave them.
        work: where a run may leave what it needs to go on after an interruption; each has its own folder there.
    """
    began = time.perf_counter()
    from benchmarks.proof.data import fingerprint, first, open_images

    images = open_images(item.data, places, image_size=item.options.get("image_size", 28))
    images = first(images, item.options.get("images"))
    folder = work / item.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    experiment = importlib.import_module(f"benchmarks.proof.{item.experiment}")
    result = experiment.run(item.options, images, seed=item.seed, work=folder, tell=lambda text: _tell(item, text))
    share = float(np.bincount(images.test_labels).max() / len(images.test_labels))
    data = {
        "count": [len(images.train), len(images.test)],
        "most_frequent": share,
        "sha256": fingerprint(images),
    }
    return {"result": result, "seconds": time.perf_counter() - began, "data": data}


def _tell(item: Item, text: str) -> None:
    print(f"{item.name}: {text}", file=sys.stderr, flush=True)
