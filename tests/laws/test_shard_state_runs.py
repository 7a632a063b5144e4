"""A run whose state is spread over eight devices: the run that it would be without, stopped and gone on bit for bit."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from jax.sharding import AbstractMesh
from optax import contrib

from byol_jax import TrainState, checkpoint, make_learner, nets, parallel, pretrain
from byol_jax.runs.metrics import read_metrics
from byol_jax.runs.placement import places, sentence
from tests.processes import free_address, run_together

OPTIONS = {
    "image_size": 16,
    "num_channels": 1,
    "batch_size": 16,
    "projection_size": 64,
    "projection_hidden_size": 256,
    "optimizer": optax.sgd(0.005, momentum=0.9),
    "augment_fn": lambda key, image: image,
    "log_every": 1,
    "progress": False,
}
"""The heads' larger kernels are just large enough to be spread."""

FREE = {"optimizer": contrib.schedule_free_sgd(0.05), "evaluation_params": contrib.schedule_free_eval_params}

HERE = Path(__file__).parent

FLOAT32 = 2e-5
"""Six float32 steps of such a rate, sums in another order; as in tests/cli/test_train_processes.py."""


SMALL = {"image_size": 8, "num_channels": 1, "augment_fn": lambda key, image: image}


def abstract(devices):
    return AbstractMesh((devices,), (parallel.AXIS,))


def train(out, steps, **options):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), np.uint8)
    return pretrain(nets.small_cnn((4,)), images, out=out, steps=steps, **(OPTIONS | options))


def leaves(out, step):
    (file,) = (out / "checkpoints" / f"{step:08d}").glob("*.safetensors")
    return safetensors.numpy.load_file(file)


def difference(ours, wanted):
    assert set(ours) == set(wanted)
    return max(np.abs(ours[name].astype(np.float64) - leaf.astype(np.float64)).max() for name, leaf in wanted.items())


def bytes_of_devices():
    """Of the arrays that somebody has; of several that lie in the same memory one counts."""
    found = {device: {} for device in jax.devices()}
    for array in jax.live_arrays():
        if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            for part in array.addressable_shards:
                found[part.device][part.data.unsafe_buffer_pointer()] = part.data.nbytes
    return [sum(buffers.values()) for buffers in found.values()]


@pytest.mark.slow
def test_it_is_the_run_without_and_goes_on_bit_for_bit_and_with_or_without(tmp_path, monkeypatch):
    before, taken, real = bytes_of_devices(), [], checkpoint.save

    def save(directory, state, **options):
        taken.append(np.subtract(bytes_of_devices(), before))
        return real(directory, state, **options)

    monkeypatch.setattr(checkpoint, "save", save)
    state = train(tmp_path / "spread", 6, shard_state=True)
    assert not state.opt_state[0].trace["projector"]["3"]["kernel"].is_fully_replicated
    size = parallel.state_bytes(state, jax.tree.map(lambda leaf: leaf.sharding, state))
    assert max(taken[0]) - min(taken[0]) < 0.1 * size, "no device keeps the whole one that the run started from"

    monkeypatch.undo()
    train(tmp_path / "whole", 6)
    assert difference(leaves(tmp_path / "spread", 6), leaves(tmp_path / "whole", 6)) < FLOAT32
    for name in ("loss", "evaluation_feature_std"):
        ours, wanted = (read_metrics(tmp_path / run / "metrics.jsonl")[0][-1][name] for run in ("spread", "whole"))
        assert ours == pytest.approx(wanted, rel=1e-3)
    log = (tmp_path / "spread" / "train.log").read_text()
    assert log.count("target and optimiser state are spread over 8 devices: each holds ") == 1
    assert "spread over" not in (tmp_path / "whole" / "train.log").read_text()
    configs = [json.loads((tmp_path / run / "config.json").read_bytes()) for run in ("spread", "whole")]
    assert [config["shard_state"] for config in configs] == [True, False]
    assert configs[0] | {"out": "", "shard_state": False} == configs[1] | {"out": ""}

    train(tmp_path / "first", 3, shard_state=True)
    for name, options in (("again", {"shard_state": True}), ("without", {})):
        shutil.copytree(tmp_path / "first", tmp_path / name)
        train(tmp_path / name, 6, resume=True, **options)
    assert difference(leaves(tmp_path / "again", 6), leaves(tmp_path / "spread", 6)) == 0
    assert difference(leaves(tmp_path / "without", 6), leaves(tmp_path / "spread", 6)) < FLOAT32
    doubt = "from here on not bit for bit what it would have been, rounding differs: shard_state True then, False now"
    assert doubt in (tmp_path / "without" / "train.log").read_text()
    assert "shard_state True then" not in (tmp_path / "again" / "train.log").read_text()


@pytest.mark.slow
def test_an_optimiser_whose_state_belongs_to_the_evaluated_point(tmp_path):
    """What is exported and measured is made of parts of the optimiser's state, from all devices."""
    for run, shard_state in (("spread", True), ("whole", False)):
        train(tmp_path / run, 4, shard_state=shard_state, **FREE)
    check_evaluated(tmp_path)


@pytest.mark.long
def test_the_same_in_two_processes(tmp_path, figure):
    """Process 0 measures and exports; both bring the parts together."""
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    environment = os.environ | devices | {"PYTHONPATH": os.pathsep.join(paths)}
    words, script = (free_address(), str(tmp_path / "spread")), HERE / "shard_state_in_processes.py"
    run_together(script, [(str(number), *words) for number in (0, 1)], environment, timeout=300)
    train(tmp_path / "whole", 4, **FREE)
    found = check_evaluated(tmp_path)
    figure(
        "schedule-free SGD, whose state belongs to the evaluated point, spread over two processes of four devices",
        cases=1,
        result=f"exported weights as of a run with whole states, to {found:.1e}",
    )


def check_evaluated(tmp_path):
    """Weights and measures of the runs "spread" and "whole" are equal to rounding; how far weights are apart."""
    rows, exported = zip(
        *(
            (
                read_metrics(tmp_path / run / "metrics.jsonl")[0][-1],
                safetensors.numpy.load_file(tmp_path / run / "exported" / "encoder.safetensors"),
            )
            for run in ("spread", "whole")
        ),
        strict=True,
    )
    assert difference(*exported) < FLOAT32
    assert rows[0]["evaluation_feature_std"] == pytest.approx(rows[1]["evaluation_feature_std"], rel=1e-3)
    return difference(*exported)


def test_what_it_does_is_said():
    kernel = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)  # 4.2 MB
    step, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    state, mesh = TrainState(step, key, {"k": kernel}, {"k": kernel}, {"k": kernel}), parallel.make_mesh()
    assert sentence(state, mesh) == (
        "target and optimiser state are spread over 8 devices: each holds 5.2 MB of the training state instead of 12.6"
    )
    assert sentence(state, parallel.make_mesh(jax.devices()[:1])) == "shard_state changes nothing: there is one device"
    assert sentence(state, abstract(24)) == (
        "shard_state changes nothing: no axis of the large leaves, of 16,384 elements or more, is a multiple of 24"
    )
    odd = {"odd": jax.ShapeDtypeStruct((1000, 1001), jnp.float32), "small": jax.ShapeDtypeStruct((3,), jnp.float32)}
    assert sentence(state.replace(opt_state={"k": kernel, "mine": odd}), abstract(64)) == (
        "target and optimiser state are spread over 64 devices: each holds 8.3 MB of the training state instead of"
        " 16.6; 4.0 MB of them stay whole: no axis there is a multiple of 64"
    )


@pytest.mark.slow
def test_a_resnet50_of_which_nothing_can_be_spread():
    """As docs/recipes.md and decision 0022 say."""
    learner = make_learner(nets.resnet50(), image_size=64)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    for devices in (6, 12, 24):
        assert sentence(state, abstract(devices)).startswith("shard_state changes nothing: ")
    assert sentence(state, abstract(8)).startswith("target and optimiser state are spread over 8 devices: ")


@pytest.mark.slow
def test_a_run_with_a_whole_state_compiles_the_program_that_it_was():
    """`train` names a place for every leaf; as text it is the step of `parallel.jit` by itself."""
    learner = make_learner(nets.small_cnn((4,)), projection_size=4, projection_hidden_size=8, **SMALL)
    mesh = parallel.make_mesh()
    state = parallel.replicate(learner.init(jax.random.key(0)), mesh)
    images = parallel.shard(np.zeros((8, 8, 8, 1), np.uint8), mesh)
    programs = [
        parallel.jit(learner, mesh, state_shardings=where).lower(state, images).as_text()
        for where in (None, places(state, mesh, shard_state=False))
    ]
    assert programs[0] == programs[1]
