"""A traced network kept in a folder: the same numbers without the module's code and without torch; damage is named."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from traced_modules import Buffers, Chance, Residual

from byol_jax import ConfigurationError, Variables, nets
from byol_jax.errors import CheckpointFormatError, UnsupportedOpError
from interop import from_torch_module, load_network, save_network
from interop.files import read_arrays, write_arrays

IMAGES = np.random.default_rng(0).random((3, 4, 4, 3), np.float32)


def outputs(encoder):
    variables = encoder.init(None, (4, 4, 3))
    return [
        encoder.apply(variables, jnp.asarray(IMAGES), train=train, hidden_layer=layer, key=jax.random.key(0))
        for train in (True, False)
        for layer in (-1, encoder.hidden_layers()[0])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Residual, Buffers, Chance])
def test_a_saved_network_computes_the_same_bits(kind, tmp_path) -> None:
    encoder = from_torch_module(kind(), image_size=4, verify=False)
    save_network(tmp_path, encoder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.json", "network.safetensors"]
    again = load_network(tmp_path)
    assert again.hidden_layers() == encoder.hidden_layers()
    for ours, wanted in zip(jax.tree.leaves(outputs(again)), jax.tree.leaves(outputs(encoder)), strict=True):
        assert ours.dtype == wanted.dtype
        assert (ours == wanted).all()


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import jax, jax.numpy as jnp, interop
encoder = interop.load_network(sys.argv[1])
features, _ = encoder.apply(encoder.init(None, (4, 4, 3)), jnp.ones((2, 4, 4, 3)), train=False, hidden_layer="pool")
print(features.shape, float(features.sum()))
"""


@pytest.mark.slow
def test_it_runs_where_torch_is_not_installed(tmp_path) -> None:
    module = Residual()
    save_network(tmp_path, from_torch_module(module, image_size=4, verify=False))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = {}
    module.pool.register_forward_hook(lambda m, i, o: kept.update(y=o))
    module.eval()(torch.ones(2, 3, 4, 4))
    shape, total = done.stdout.rsplit(" ", 1)
    assert shape == "(2, 8)"
    np.testing.assert_allclose(float(total), kept["y"].sum().item(), rtol=1e-5)


def test_only_traced_networks_are_saved(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="wasn't traced"):
        save_network(tmp_path / "x", nets.small_cnn())
    assert not (tmp_path / "x").exists()


def saved(folder):
    save_network(folder, from_torch_module(nn.Conv2d(3, 2, 3), image_size=4, verify=False))
    return json.loads((folder / "network.json").read_text())


DAMAGE = {
    "can't be read|no traced network": lambda d: "{",
    "format 99": lambda d: json.dumps(d | {"format": 99}),
    "isn't as it was written": lambda d: json.dumps({k: v for k, v in d.items() if k != "names"}),
    "as it was written": lambda d: json.dumps(d | {"train": {"nodes": [[1]]}}),
    "written .ValueError: state_dict": lambda d: json.dumps(d | {"state_dict": [["x", "other", "int64"]]}),
    "as it was  ?written": lambda d: json.dumps(d | {"eval": []}),
    "no traced network": lambda d: "[" * 100_000,
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_damage_is_named(reason: str, tmp_path) -> None:
    (tmp_path / "network.json").write_text(DAMAGE[reason](saved(tmp_path)))
    with pytest.raises(CheckpointFormatError, match=reason.replace("  ?", " ")) as caught:
        load_network(tmp_path)
    assert "network.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_operators_are_only_looked_up(tmp_path) -> None:
    """A name in the file is a key of the table, nothing that could be imported or run."""
    text = json.dumps(saved(tmp_path)).replace("aten.conv2d.default", "os.system")
    (tmp_path / "network.json").write_text(text)
    with pytest.raises(UnsupportedOpError, match=r"os\.system"):
        load_network(tmp_path)


def test_a_network_without_weights(tmp_path) -> None:
    save_network(tmp_path, from_torch_module(torch.nn.Flatten(), image_size=4))
    kept = load_network(tmp_path)
    variables = kept.init(None, (4, 4, 3))
    features, _ = kept.apply(variables, jnp.ones((2, 4, 4, 3)), train=False, hidden_layer=-1)
    assert features.shape == (2, 48)


class Table(nn.Module):
    """Reads a buffer that no state dict holds, which is a constant of its graph."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(48.0), persistent=False)

    def forward(self, x):
        return x.flatten(1) * self.table


class Wrapped(nn.Module):
    """What `torch.compile` makes of a layer, by its names."""

    def __init__(self):
        super().__init__()
        self._orig_mod = Table()

    def forward(self, x):
        return self._orig_mod(x)


def test_constants_below_a_wrappers_name_are_kept(tmp_path) -> None:
    save_network(tmp_path, from_torch_module(nn.Sequential(Wrapped()), image_size=4, verify=False))
    kept = load_network(tmp_path)
    features, _ = kept.apply(kept.init(None, (4, 4, 3)), jnp.ones((2, 4, 4, 3)), train=False, hidden_layer=-1)
    np.testing.assert_array_equal(features, np.tile(np.arange(48, dtype=np.float32), (2, 1)))


@pytest.mark.parametrize("lost", ["constant/eval/0._orig_mod.table", "stat/1/shadow"])
def test_a_tensor_that_a_graph_reads_must_be_there(lost: str, tmp_path) -> None:
    save_network(tmp_path, from_torch_module(nn.Sequential(Wrapped(), Buffers()), image_size=4, verify=False))
    tensors = read_arrays(tmp_path / "network.safetensors")
    write_arrays(tmp_path / "network.safetensors", {name: tensors[name] for name in tensors if name != lost})
    words = r"reads the (constant 0\._orig_mod\.table|buffer 1\.shadow), which network\.safetensors lacks"
    with pytest.raises(CheckpointFormatError, match=words):
        load_network(tmp_path)


def test_absent(tmp_path) -> None:
    with pytest.raises(CheckpointFormatError, match="no traced network"):
        load_network(tmp_path)


@pytest.mark.slow
def test_written_back_after_training(tmp_path) -> None:
    from byol_jax import encoder_variables, make_learner
    from interop import update_torch_module

    torch.manual_seed(0)
    module = Residual()
    encoder = from_torch_module(module, image_size=4, verify=False)
    learner = make_learner(
        encoder,
        image_size=4,
        hidden_layer="pool",
        projection_size=4,
        projection_hidden_size=8,
        augment_fn=lambda key, image: image,
    )
    state, _ = jax.jit(learner.step)(learner.init(jax.random.key(0)), IMAGES)
    unused = module.fc.weight.clone()
    names = update_torch_module(module, encoder_variables(state))
    assert names == list(module.state_dict())
    assert torch.equal(module.fc.weight, unused)
    assert module.bn1.num_batches_tracked.item() == 1
    kept = {}
    module.pool.register_forward_hook(lambda m, i, o: kept.update(y=o.flatten(1)))
    module.eval()(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    np.testing.assert_allclose(learner.embed(state, IMAGES), kept["y"].detach().numpy(), atol=1e-6)
    assert isinstance(encoder_variables(state), Variables)
