"""What `pretrain` promises beside learning: one compilation, sparse fetching, refusal before anything is written."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

from byol_jax import ConfigurationError, DataError, Encoder, Variables, nets, pretrain, schedules
from byol_jax.runs.metrics import read_metrics
from byol_jax.runs.source import Length, open_source

SMALL = {
    "image_size": 16,
    "num_channels": 1,
    "projection_size": 8,
    "projection_hidden_size": 16,
    "progress": False,
}


def images(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 1), np.uint8)


@pytest.mark.slow
def test_a_scheduled_run_compiles_its_step_once_and_nothing_after_it(tmp_path: Path, caplog) -> None:
    """Fifty steps in nine epochs, each of which leaves out a last, incomplete batch; a resume compiles once again."""
    steps, rows_at = 50, [10, 20, 30, 40, 50]

    def run(until: int, *, resume: bool) -> list[str]:
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level(logging.WARNING):
            pretrain(
                nets.small_cnn((4,)),
                images(43),
                out=tmp_path / "run",
                steps=until,
                resume=resume,
                batch_size=8,
                log_every=10,
                checkpoint_every=15,
                moving_average_decay=schedules.target_decay(0.9, steps),
                optimizer=optax.adam(schedules.learning_rate(0.1, 256, 5, steps)),
                augment_fn=lambda key, image: image,
                **SMALL,
            )
        return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]

    for until, resume in ((steps, False), (steps + 20, True)):
        compiled = run(until, resume=resume)
        step = [position for position, message in enumerate(compiled) if message.startswith("Compiling jit(step)")]
        assert len(step) == 1, compiled
        assert compiled[step[0] + 1 :] == []
    rows, _ = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [*rows_at, 60, 70]
    assert all(0 <= row["data_wait"] <= 1.5 for row in rows)
    check_speed(rows, batch_size=8, steps=10, compiled_before={10, 60})


def check_speed(rows, *, batch_size: int, steps: int, compiled_before: set[int]) -> None:
    """Rows say how fast their `steps` steps went by, and apart from that how long the program was compiled."""
    for row in rows:
        assert row["images_per_second"] * row["seconds_per_step"] == pytest.approx(batch_size)
        assert ("compile_seconds" in row) == (row["step"] in compiled_before)
        assert row["seconds"] == pytest.approx(steps * row["seconds_per_step"] + row.get("compile_seconds", 0))
        assert row.get("compile_seconds", 1) > 0


@pytest.mark.slow
def test_an_iterables_own_batch_size_counts_and_older_runs_that_say_256_go_on(tmp_path: Path) -> None:
    """Other batches after a resume are allowed, as before."""
    out = tmp_path / "run"
    options = SMALL | {"out": out, "log_every": 1, "augment_fn": lambda key, image: image}
    pretrain(nets.small_cnn((4,)), [images(16)], steps=2, batch_size=48, **options)
    config = json.loads((out / "config.json").read_text())
    assert config["batch_size"] == 16
    assert config["data"] == {"kind": "iterable"}
    (out / "config.json").write_text(json.dumps(config | {"batch_size": 256}))
    pretrain(nets.small_cnn((4,)), [images(24)], steps=4, resume=True, **options)
    assert json.loads((out / "config.json").read_text()) == config | {"batch_size": 24, "steps": 4}
    rows, _ = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    check_speed(rows[:2], batch_size=16, steps=1, compiled_before={1})
    check_speed(rows[2:], batch_size=24, steps=1, compiled_before={3})
    log = [line.partition("  ")[2] for line in (out / "train.log").read_text().splitlines()]
    assert sum(line.startswith("compiled the step in ") for line in log) == 2
    assert sum(line.startswith("data: the images of 'iterable' aren't compared") for line in log) == 1


@pytest.mark.slow
def test_a_batch_size_that_nobody_knows_yet_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: Any, mesh: Any) -> None:
        raise DataError("no room on the device")

    monkeypatch.setattr("byol_jax.train.loop.shard_in_place", fail)
    with pytest.raises(DataError, match="no room"):
        pretrain(nets.small_cnn((4,)), [images(16)], out=tmp_path / "run", steps=2, batch_size=48, **SMALL)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] is None


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (images(), {"steps": 3, "epochs": 1}, "exactly one"),
        (images(), {}, "exactly one"),
        (images(), {"steps": 0}, "at least 1"),
        (images(), {"steps": 3, "batch_size": 12}, "devices"),
        (images(), {"steps": 3, "batch_size": 48}, "larger than the data"),
        (images(), {"steps": 3, "batch_size": 0}, "at least 1"),
        (images(), {"steps": 3, "log_every": 0}, "at least 1"),
        ([images()[:8]], {"epochs": 2}, "give steps"),
        (np.zeros((8, 16, 16, 3), np.uint8), {"steps": 3}, "channel"),
        ("no/such/folder", {"steps": 3}, "no/such/folder"),
        ([], {"steps": 3}, "gave nothing more after 0 batches"),
        (iter([]), {"steps": 3}, "gave nothing more after 0 batches"),
        (7, {"steps": 3}, "int: not an iterable"),
        ([images(12)], {"steps": 3}, "a batch of 12 can't be shared by 8 devices"),
        ([images(16)[..., 0]], {"steps": 3}, r"batch 0: shape \(16, 16, 16\), expected"),
        ([images(16).repeat(3, -1)], {"steps": 3}, "images of 3 channels .*, but num_channels is 1"),
        ([np.zeros((16, 5, 32, 48), np.float32)], {"steps": 3}, "say which layout"),
        ([images(16).astype(np.float32)], {"steps": 3}, r"expected floats in \[0, 1\]"),
        ([{"x": images(16)}], {"steps": 3}, "a dict of x: expected one entry that is named image"),
        (torch.zeros(16, 1, 16, 24), {"steps": 3}, "has its channels first: .* say layout NCHW"),
        (images(), {"steps": 3, "hidden_layer": "fc"}, "not found"),
        (images(), {"steps": 3, "augment_fn": lambda key, image: image[:8]}, r"views of shapes \(8, 16, 1\)"),
        (images(), {"steps": 3, "augment_fn": lambda key, image: image > 0}, "augment_fn gave bool: expected floats"),
        (images(), {"steps": 3, "moving_average_decay": lambda k: 0.9 if k < 2 else 1.0}, "fails for an abstract step"),
        (images(), {"steps": 3, "moving_average_decay": lambda k: np.ones(2)}, r"gives .*\(2,\).*, expected one"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    data, options: dict, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        pretrain(nets.small_cnn(), data, out=tmp_path / "run", **({"batch_size": 8} | options), **SMALL)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    assert isinstance(error.value, ConfigurationError | DataError) or "not found" in words


class Shuffled:
    """Batches in another order at each pass, as a shuffling loader has it; counts its passes and batches."""

    def __init__(self) -> None:
        self.passes, self.given = 0, []

    def __iter__(self) -> Iterator[np.ndarray]:
        order = np.random.default_rng(self.passes).permutation(3)
        self.passes += 1
        for number in order:
            self.given.append(int(number))
            yield np.full((8, 16, 16, 1), number, np.uint8)


def test_of_an_iterable_no_batch_is_drawn_twice_and_no_pass_begun_twice() -> None:
    alone, checked = Shuffled(), Shuffled()
    expected = [int(batch[0, 0, 0, 0]) for _ in range(3) for batch in alone]
    options = {"image_size": 16, "num_channels": 1, "fit": "cover", "layout": None, "workers": 1, "known": None}
    source = open_source(checked, Length(9, None, 8), show=False, **options)
    assert (checked.passes, len(checked.given)) == (1, 1)
    with source.loader(start_step=2, seed=0, workers=1, place=lambda batch: batch) as loader:
        found = [int(next(loader)[0, 0, 0, 0]) for _ in range(7)]
    assert found == expected[2:]
    assert checked.given[:9] == alone.given


@pytest.mark.parametrize("image_size", [(16, 16, 1), (4, 8, 8), (8, 8, 8), (4, 100), (64,)])
def test_an_iterable_of_whole_input_shapes_is_taken_as_it_is(image_size: tuple[int, ...]) -> None:
    batches = [np.random.default_rng(0).random((8, *image_size), np.float32)]
    options = {"image_size": image_size, "num_channels": 3, "fit": "cover", "layout": None, "workers": 1, "known": None}
    source = open_source(batches, Length(1, None, 8), show=False, **options)
    with source.loader(start_step=0, seed=0, workers=1, place=lambda batch: batch) as loader:
        np.testing.assert_array_equal(next(loader), batches[0])


@pytest.mark.parametrize("kind", [torch.from_numpy, jax.numpy.asarray, lambda array: array])
def test_one_array_of_any_kind_is_a_set_of_images(kind: Callable) -> None:
    options = {"image_size": 16, "num_channels": 1, "fit": "cover", "layout": None, "workers": 1, "known": None}
    source = open_source(kind(images()), Length(None, 2, 8), show=False, **options)
    assert (source.identity["kind"], source.identity["count"], source.total_steps) == ("array", 40, 10)
    assert source.identity == open_source(images(), Length(None, 2, 8), show=False, **options).identity


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages under tensorboard's reader
def test_tensorboard_events_are_the_rows(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(
        nets.small_cnn(), images(), out=tmp_path / "run", steps=4, batch_size=8, log_every=2, tensorboard=True, **SMALL
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    rows, _ = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors("loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in rows]


@pytest.mark.slow
def test_weights_to_start_from_arrive_in_both_networks(tmp_path: Path) -> None:
    import interop
    from byol_jax import checkpoint, encoder_variables

    given = nets.small_cnn().init(jax.random.key(5), (16, 16, 1))
    file = tmp_path / "weights.safetensors"
    interop.save_state_dict(file, interop.to_torch_state_dict(given))
    options = SMALL | {"optimizer": optax.sgd(0.0)}
    state = pretrain(nets.small_cnn(), images(), out=tmp_path / "run", steps=1, batch_size=8, init_from=file, **options)
    for which in ("online", "target"):
        for ours, theirs in zip(
            jax.tree.leaves(encoder_variables(state, which).params), jax.tree.leaves(given.params), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") is not None
    exported = interop.load_state_dict(tmp_path / "run" / "exported" / "encoder.safetensors")
    np.testing.assert_array_equal(
        exported["0.weight"], interop.to_torch_state_dict(encoder_variables(state))["0.weight"]
    )


@pytest.mark.slow
def test_a_network_without_weights_ends_with_a_report_and_no_file_of_weights(tmp_path: Path) -> None:
    def apply(variables, images, **options):
        return images.reshape(len(images), -1), variables.stats

    encoder = Encoder(lambda key, shape: Variables({}, {}), apply, lambda variables=None: ())
    options = SMALL | {"hidden_layer": -1, "augment_fn": lambda key, image: image}
    pretrain(encoder, images(8), out=tmp_path / "run", steps=1, batch_size=8, **options)
    assert (tmp_path / "run" / "report.html").exists()
    assert not list((tmp_path / "run" / "exported").iterdir())
    assert "no weights exported: the network has none" in (tmp_path / "run" / "train.log").read_text()
