"""What a run is told beside what it learns, and what its loop needs to know. Plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jax.sharding import Mesh

from byol_jax.byol import Learner
from byol_jax.parallel import is_writer
from byol_jax.runs.folder import RunPaths
from byol_jax.runs.probe import Probe
from byol_jax.runs.progress import TrainingLog
from byol_jax.runs.source import Source
from byol_jax.types import Encoder

if TYPE_CHECKING:
    from interop import WeightFile

__all__ = ["Plan", "Program"]


@dataclass(frozen=True)
class Program:
    """What a run is told beside what it learns, and its data; each value as in `pretrain`.

    `advice_when_stopped` ends the line about a run that was stopped: how its program is told to go on. `probe` is a
    labelled set on which the representation is measured on the way. `remarks` are the log's first lines.
    """

    out: str | Path
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    workers: int = 2
    checkpoint_every: int = 1000
    log_every: int = 50
    init_from: "str | Path | WeightFile | None" = None
    progress: bool = True
    tensorboard: bool = False
    advice_when_stopped: str = "go on with --resume"
    fit: str = "cover"
    layout: str | None = None
    accumulate: int = 1
    health_every: int | None = None
    stop_on_collapse: bool = False
    probe: Probe | None = None
    remarks: Sequence[str] = ()
    batchnorm_group: int | None = None
    bands: tuple[int, ...] | None = None
    tiff_axes: str | None = None
    dicom_rescale: bool = False
    shard_state: bool = False

    @property
    def reading(self) -> dict[str, Any]:
        """What was said of how a folder's files are read: `open_dataset`'s arguments, and keys of config.json."""
        said = {"bands": self.bands, "tiff_axes": self.tiff_axes, "dicom_rescale": self.dicom_rescale or None}
        return {name: value for name, value in said.items() if value is not None}


class Plan(NamedTuple):
    """What the loop needs to know; nothing in it changes. `learning_rate` is a number or a function of the step, None
    where it isn't known."""

    encoder: Encoder
    learner: Learner
    source: Source
    program: Program
    mesh: Mesh
    paths: RunPaths
    log: TrainingLog
    record_events: Callable[[dict[str, Any]], None] | None
    config: dict[str, Any]
    learning_rate: float | Callable[[Any], Any] | None

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes the run's files."""
        return is_writer()

    @property
    def takes_any_batch(self) -> bool:
        """Whether the network takes a batch of any size; a traced one may not."""
        traced = self.encoder.facts.traced
        return traced is None or traced.takes_any_batch
