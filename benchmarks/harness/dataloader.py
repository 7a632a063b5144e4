"""torch's DataLoader as a contender: its processes over a data set of torch's kind."""

from typing import Any

from benchmarks.harness.contenders import Contender
from benchmarks.harness.machine import available_cores

__all__ = ["dataloader"]


def dataloader(images: Any, *, batch_size: int, shuffle: bool = True, **options: Any) -> Contender:
    """A step is an epoch; a process for each core. `options` are the DataLoader's."""
    import torch

    loader = torch.utils.data.DataLoader(
        images,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=available_cores(),
        persistent_workers=True,
        **options,
    )

    def step() -> None:
        for _ in loader:
            pass

    return Contender(step, "cpu", dict)
