"""Hugging Face transformers' ResNet and vision transformer in native networks: names, values, and its own outputs.

hugging_face.json has, of four small networks, the names and shapes in the file of `save_pretrained` (transformers
5.24.0 and 4.57.3 write the same), what 5.24.0's `state_dict()` calls some of them, and the output in float64 for the
weights and the image that are made here. Layer norms add 1e-6 there, as torchvision's do.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_samples import assert_identical

import interop
from byol_jax import nets
from byol_jax.errors import StateDictMismatchError
from interop.inspect.commands import inspect_file
from interop.weights.architectures import expected_shapes, recognise
from interop.weights.hugging_face import is_hugging_face, left_out, torchvision_arrays, torchvision_name

STORED = json.loads((Path(__file__).parent / "hugging_face.json").read_text())
VIT = {"width": 6, "num_heads": 2, "patch_size": 4}
NETWORKS = {
    "resnet-basic": (16, lambda: nets.resnet((1, 1), block="basic", num_classes=3)),
    "resnet-bottleneck": (16, lambda: nets.resnet((1, 1), block="bottleneck", num_classes=None)),
    "vit": (8, lambda: nets.vit(1, **VIT, num_classes=3)),
    "vit-model": (8, lambda: nets.vit(1, **VIT, num_classes=None)),
}
ANY = pytest.mark.parametrize("network", NETWORKS)


def values(number, shape, name):
    """Numbers that differ; variances above 0."""
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    waves = np.sin(1.0 + number + 0.7 * np.arange(int(np.prod(shape)))).reshape(shape)
    return 1.0 + 0.5 * waves if name.endswith("running_var") else waves * (0.1 if len(shape) > 1 else 1.0)


def stored(network, *, renamed=False):
    """The network's state dict, as it is in a file, or as `state_dict()` gives it."""
    names = STORED[network]["renamed"] if renamed else {}
    shapes = STORED[network]["file"].items()
    return {names.get(name, name): values(number, shape, name) for number, (name, shape) in enumerate(shapes)}


def like_of(network):
    side, make = NETWORKS[network]
    shapes = jax.eval_shape(lambda: make().init(jax.random.key(0), (side, side, 3)))
    wide = {jnp.dtype("float32"): np.float64}
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, wide.get(leaf.dtype, leaf.dtype)), shapes)


def test_its_large_networks_are_known_by_torchvisions_names():
    """Those of ViT-B/32, as the command line calls it."""
    shapes, zero = expected_shapes("vit_b_32", num_classes=None), np.zeros((), np.float32)
    names = {name.replace(".layer.0.", f".layer.{n}.") for name in STORED["vit-model"]["file"] for n in range(12)}
    state_dict = {}
    for name in names - set(left_out(names)):
        whole, _, part = torchvision_name(name).partition("[")
        rows, *rest = shapes[whole]
        state_dict[name] = np.broadcast_to(zero, (rows // 3 if part else rows, *rest))
    assert interop.open_weights(state_dict).architecture.network_option == "vit_b32"


@pytest.mark.slow
@ANY
def test_outputs_are_its_own(network):
    side, make = NETWORKS[network]
    image = np.cos(0.3 * np.arange(side * side * 3)).reshape(1, side, side, 3)
    encoder, wanted = make(), STORED[network]["output"]
    with jax.enable_x64(True):
        variables = interop.from_torch_state_dict(stored(network), like=like_of(network))
        output, _ = encoder.apply(variables, jnp.asarray(image), train=False, hidden_layer=-1, key=None, axis_name=None)
    np.testing.assert_allclose(np.asarray(output)[0, : len(wanted)], wanted, rtol=1e-12)


@ANY
@pytest.mark.parametrize("renamed", [False, True])
def test_a_file_is_read_by_every_way_in(network, renamed, tmp_path):
    state_dict = stored(network, renamed=renamed)
    interop.save_state_dict(tmp_path / "model.safetensors", state_dict)
    _, make = NETWORKS[network]
    with jax.enable_x64(True):
        weights = interop.open_weights(tmp_path / "model.safetensors")
        one = weights.variables(make(), like=like_of(network))
        other = interop.from_torch_state_dict(stored(network), like=like_of(network))
        assert_identical(*(dict(enumerate(jax.tree.leaves(variables))) for variables in (one, other)))
        assert_identical(weights.network(), interop.encoder_state_dict(make(), one), ordered=False)
    inspection = inspect_file(tmp_path / "model.safetensors")
    assert inspection["kind"].endswith(", Hugging Face transformers")
    omitted = [name for name in state_dict if "pooler" in name or "mask_token" in name]
    assert [one["name"] for one in inspection["would_not_convert"]] == sorted(omitted)
    assert len(omitted) == (3 if network == "vit-model" else 0)


def hugging_face_shapes(shapes):
    """Torchvision's ResNet by name, under the other names; written down here once more."""
    names = {}
    for name in shapes:
        parts = name.split(".")
        kind = {"c": "convolution", "b": "normalization"}
        if parts[0] == "fc":
            names[name] = f"classifier.1.{parts[1]}"
        elif parts[0] in ("conv1", "bn1"):
            names[name] = f"resnet.embedder.embedder.{kind[parts[0][0]]}.{parts[1]}"
        else:
            place = f"resnet.encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}"
            if parts[2] == "downsample":
                names[name] = f"{place}.shortcut.{['convolution', 'normalization'][int(parts[3])]}.{parts[4]}"
            else:
                names[name] = f"{place}.layer.{int(parts[2][-1]) - 1}.{kind[parts[2][0]]}.{parts[3]}"
    return names


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_every_name_of_a_resnet(name):
    shapes = expected_shapes(name)
    theirs = hugging_face_shapes(shapes)
    assert {torchvision_name(theirs[ours]): shape for ours, shape in shapes.items()} == shapes
    arrays = {theirs[ours]: np.empty(shape, np.bool_) for ours, shape in shapes.items()}
    assert recognise({key: array.shape for key, array in arrays.items()}) == "ResNet, Hugging Face transformers"
    weights = interop.open_weights(arrays)
    assert (weights.title, weights.architecture.name, weights.architecture.details) == ("", name, ())


def test_what_does_not_fit_is_named():
    state_dict = stored("vit")
    like = like_of("vit")
    key = "vit.encoder.layer.0.attention.attention.key.weight"
    with jax.enable_x64(True):
        lacking = {name: array for name, array in state_dict.items() if name != key}
        with pytest.raises(
            StateDictMismatchError, match=r"missing: .*in_proj_weight \(nearest.*in_proj_weight\[query\]"
        ):
            interop.from_torch_state_dict(lacking, like=like)
        with pytest.raises(StateDictMismatchError, match=r"unexpected: vit\.decoder\.weight"):
            interop.from_torch_state_dict(state_dict | {"vit.decoder.weight": np.zeros(1)}, like=like)
        twice = state_dict | {"vit.layers.0.attention.k_proj.weight": state_dict[key]}
        with pytest.raises(
            StateDictMismatchError, match=r"are both .*in_proj_weight\[key\] of the network: remove one"
        ):
            interop.from_torch_state_dict(twice, like=like)


def test_a_network_that_has_their_names_keeps_them():
    """A traced one of transformers' own."""
    state_dict = stored("resnet-basic")
    weights = interop.open_weights(state_dict)
    assert_identical(weights.network(state_dict), state_dict)
    assert is_hugging_face(state_dict)
    assert not is_hugging_face(torchvision_arrays(state_dict))
