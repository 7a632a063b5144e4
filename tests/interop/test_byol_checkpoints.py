"""byol-pytorch 0.9.1's learners as training states and back: the same bits, the same next loss, every fault named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from byol_learners import LAYOUTS, state_of, theirs, torch_learner
from safetensors.torch import save_model
from weight_samples import assert_identical

import interop
from interop.learners.fitting import definition_rank
from tests.parity.reference import our_networks
from tests.parity.trajectory import RESNET18

ANY = pytest.mark.parametrize("layout", LAYOUTS)


def leaves(variables):
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(variables)]
    return dict(zip(names, jax.tree.leaves(variables), strict=True))


@pytest.mark.parametrize(
    ("layout", "suffix"),
    [
        *[("C", ".pt"), ("C-sim", ".safetensors"), ("D1", ".safetensors"), ("D1-sim", ".pt")],
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("C", ".safetensors"), ("C-sim", ".pt"), ("D1", ".pt"), ("D1-sim", ".safetensors")]
        ],
    ],
)
def test_round_trips_are_bit_identical(layout, suffix, tmp_path):
    """Theirs through ours: the same keys in the same order, and `load_state_dict(strict=True)` takes them."""
    learner, like, path = torch_learner(layout, seed=3), state_of(layout), tmp_path / f"learner{suffix}"
    state_dict = learner.state_dict()
    state = interop.load_byol_checkpoint(state_dict, like=like)
    for name in ("byol-pytorch", layout):
        interop.save_byol_checkpoint(path, state, layout=name)
        assert_identical(interop.load_state_dict(path), state_dict, ordered=suffix == ".pt")
    again = interop.load_byol_checkpoint(path, like=like, source="byol-pytorch")
    assert_identical(leaves((again.online, again.target)), leaves((state.online, state.target)))
    fresh = torch_learner(layout, seed=4)
    given = (
        torch.load(path) if suffix == ".pt" else {k: torch.tensor(v) for k, v in interop.load_state_dict(path).items()}
    )
    fresh.load_state_dict(given, strict=True)
    assert_identical(fresh.state_dict(), state_dict)


@ANY
def test_every_leaf_is_where_a_second_reading_puts_it(layout):
    """Against names and layouts written independently; what a file doesn't hold comes from `like`, in fresh buffers."""
    learner, like = torch_learner(layout), state_of(layout)
    state = interop.load_byol_checkpoint(learner.state_dict(), like=like)
    for network, kinds in our_networks(learner).items():
        for kind, wanted in kinds.items():
            ours = leaves(getattr(getattr(state, network), kind))
            assert_identical(
                ours, {n: a.astype(np.int32) if a.dtype == np.int64 else a for n, a in wanted.items()}, ordered=False
            )
    assert jax.tree.structure(state) == jax.tree.structure(like)
    assert (int(state.step), bool(jnp.all(jax.random.key_data(state.key) == jax.random.key_data(like.key)))) == (
        7,
        True,
    )
    pointers = [
        leaf.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves((like.replace(key=0), state.replace(key=0)))
        if isinstance(leaf, jax.Array)
    ]
    assert len(set(pointers)) == len(pointers)


def test_shardings_stay_those_of_like():
    mesh = jax.make_mesh((8,), ("devices",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = jax.device_put(state_of("C"), everywhere)
    state = interop.load_byol_checkpoint(theirs("C"), like=like)
    assert all(leaf.sharding.is_equivalent_to(everywhere, leaf.ndim) for leaf in jax.tree.leaves(state))
    assert_identical(
        interop.load_byol_checkpoint(theirs("C"), like=state_of("C")).online.stats["predictor"]["1"],
        state.online.stats["predictor"]["1"],
    )


@pytest.mark.parametrize("layout", ["C", pytest.param("D1-sim", marks=pytest.mark.slow)])
def test_deduplicated_and_wrapped_files_load(layout, tmp_path):
    """safetensors' save_model keeps net.* only; Lightning, DataParallel and BYOLTrainer put something in front."""
    learner, like = torch_learner(layout), state_of(layout)
    wanted = interop.load_byol_checkpoint(learner.state_dict(), like=like)
    save_model(learner, str(tmp_path / "deduplicated.safetensors"))
    names = interop.load_state_dict(tmp_path / "deduplicated.safetensors")
    assert "net.0.weight" in names
    assert "online_encoder.net.0.weight" not in names
    plain = learner.state_dict()
    trainer = {"step": torch.tensor([0])} | {f"net.{key}": value for key, value in learner.net.state_dict().items()}
    for state_dict in (
        tmp_path / "deduplicated.safetensors",
        {"state_dict": {f"learner.{key}": value for key, value in plain.items()}},
        {f"module.{key}": value for key, value in plain.items()},
        trainer | {f"byol.{key}": value for key, value in plain.items()},
        plain | {"augment1.0.kernel": torch.ones(3)},
    ):
        state = interop.load_byol_checkpoint(state_dict, like=like)
        assert_identical(leaves((state.online, state.target)), leaves((wanted.online, wanted.target)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_names_are_put_in_torchvisions_order(name):
    with torch.device("meta"):
        keys = list(getattr(torchvision.models, name)().state_dict())
    assert sorted(sorted(keys), key=definition_rank) == keys


@pytest.mark.slow
def test_resnet18_comes_out_as_it_went_in(tmp_path):
    learner, path = torch_learner("D1", network=RESNET18), tmp_path / "learner.pt"
    state = interop.load_byol_checkpoint(learner.state_dict(), like=state_of("D1", network=RESNET18))
    interop.save_byol_checkpoint(path, state, layout="D1")
    saved = torch.load(path)
    assert len(saved) == 407
    assert_identical(saved, learner.state_dict())
    learner.load_state_dict(saved, strict=True)
    assert_identical(interop.load_state_dict(path), learner.state_dict())
