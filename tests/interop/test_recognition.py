"""What a file's names tell: whose learner, what network, which heads; and that this is what loading finds in it."""

import jax
import jax.numpy as jnp
import numpy as np
import plain_learners
import pytest
import torch
from byol_learners import theirs
from deepmind_files import encoder_of, learner_of, pickles
from learner_layouts import LEARNERS, arrays_of, like_of, made
from weight_samples import assert_identical

import interop
from byol_jax.runs.network import NETWORKS, TRANSFORMERS, encoder_from
from interop.formats.dill_pickle import load_pickle
from interop.inspect.anatomy import COMMAND_LINE, Architecture, architecture, head_layers, layers_in_words
from interop.inspect.contents import read_contents
from interop.inspect.recognition import UNREAD, find_origin, learner_arrays, network_arrays
from interop.inspect.refusals import refusals
from interop.learners import deepmind
from interop.learners.fitting import own_arrays
from interop.weights.architectures import FAMILIES, RESNETS, expected_shapes
from interop.weights.encoder_tensors import encoder_tensors
from interop.weights.transformers import timm_key
from tests.parity.trajectory import blank

ANY = pytest.mark.parametrize("kind", LEARNERS)
QUICK = ("byol-pytorch C", "byol-pytorch A", "byol-pytorch D1-sim")

LOADED = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in LEARNERS]
)


@ANY
@pytest.mark.parametrize("owner", ["", "learner."])
def test_whose_it_is(kind, owner):
    origin = find_origin({owner + name: array for name, array in made(kind).items()})
    assert origin.source == kind.partition(" ")[0].partition("-")[0].replace("byol", "byol_pytorch").replace(
        "solo", "solo_learn"
    )
    assert LEARNERS[kind][1] in origin.title
    assert origin.owner == owner
    assert origin.left_out == {}


@LOADED
@pytest.mark.filterwarnings("ignore::UserWarning")  # of embeddings, which have no tensors
def test_arrays_under_our_names_are_those_that_loading_finds(kind):
    """Against the loader, which is held to the libraries themselves by its own tests."""
    given = made(kind)
    origin = find_origin(given)
    arrays = learner_arrays(origin, given)
    state = interop.load_byol_checkpoint(given, like=like_of(kind))
    wanted = own_arrays(state)
    filled = {name for name in wanted if name.endswith(("projector.0.bias", "predictor.0.bias")) and "lightly" in kind}
    filled |= {name for name in wanted if name.startswith("target.encoder.fc.")}  # like's own
    assert_identical(
        {name: arrays[name] for name in wanted if name not in filled},
        {name: wanted[name] for name in wanted if name not in filled},
    )
    assert set(arrays) <= set(wanted)
    assert refusals(origin, given) == []


@ANY
def test_networks_by_themselves(kind):
    given = made(kind)
    origin = find_origin(given)
    arrays = learner_arrays(origin, given)
    for which in ("online", "target"):
        network = network_arrays(arrays, which=which)
        front = f"{which}.encoder."
        assert_identical(network, {n.removeprefix(front): a for n, a in arrays.items() if n.startswith(front)})
        assert bool(network) == (which == "online" or not kind.endswith("-sim"))


@pytest.mark.parametrize(
    "name", ["tiny18/pretrain.pkl", pytest.param("tiny50/pretrain_2020.pkl", marks=pytest.mark.slow)]
)
def test_deepminds(name, tmp_path):
    folder, content = name.partition("/")[0], pickles()[name]
    (tmp_path / "x.pkl").write_bytes(content)
    contents = read_contents(tmp_path / "x.pkl")
    assert contents.format == "pickle"
    assert contents.facts() == {
        "beside": ["step", "rng", "opt_state"],
        "optimiser": True,
        "step": 4,
        "epoch": None,
        "lightning": None,
    }
    flat = deepmind.flat_names(load_pickle(tmp_path / "x.pkl"), where="x")
    assert_identical(contents.state_dict, flat)
    origin = find_origin(flat)
    assert (origin.source, origin.title) == ("deepmind", "DeepMind's pre-training")
    wanted = own_arrays(interop.load_byol_checkpoint(flat, like=blank(learner_of(folder)), encoder=encoder_of(folder)))
    filled = {key for key in wanted if key.endswith(("projector.3.bias", "predictor.3.bias"))}
    arrays = learner_arrays(origin, flat)
    assert set(wanted) - filled == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, wanted[key])
    assert {one.verdict for one in refusals(origin, flat)} == {"left out"}
    assert set(origin.names) | set(origin.left_out) == set(flat)


def test_a_trainers_own_tensors_are_left_out():
    learner = theirs("C")
    trainer = {"step": np.zeros(()), **{f"byol.{name}": array for name, array in learner.items()}}
    trainer |= {name: array for name, array in learner.items() if name.startswith("net.")}
    origin = find_origin(trainer)
    assert (origin.source, origin.owner) == ("byol_pytorch", "byol.")
    assert origin.title.endswith(" in its trainer")
    assert set(origin.left_out) == {name for name in trainer if not name.startswith("byol.")}
    assert_identical(learner_arrays(origin, trainer), learner_arrays(find_origin(learner), learner))


@pytest.mark.parametrize("name", RESNETS)
def test_architectures_by_shapes(name):
    shapes = expected_shapes(name)
    told = architecture(shapes)
    assert (told.name, told.details, told.features, told.classes) == (name, (), shapes["fc.weight"][1], 1000)


def test_variants_of_architectures():
    basic, bottleneck = expected_shapes("resnet18"), expected_shapes("resnet50", channels=1, num_classes=None)
    small = architecture(basic | {"conv1.weight": (64, 3, 3, 3)})
    assert (small.name, small.details) == ("resnet18", ("3x3 stem",))
    always = architecture(basic | {"layer1.0.downsample.0.weight": (64, 64, 1, 1)})
    assert (always.name, always.details) == ("resnet18", ("shortcut with weights in every stage",))
    grey = architecture(bottleneck)
    assert (grey.name, grey.details, grey.classes) == ("resnet50", ("1 input channel",), None)
    wide = {name: tuple(2 * side if side >= 64 else side for side in shape) for name, shape in bottleneck.items()}
    assert (architecture(wide).name, architecture(wide).features) == ("resnet50_2x", 4096)
    lacking = {name: shape for name, shape in basic.items() if name != "layer3.0.bn1.bias"}
    assert architecture(lacking).name == "resnet18"
    assert architecture(basic | {"layer1.0.se.fc1.weight": (4, 64, 1, 1)}).name != "resnet18"
    assert architecture({"0.weight": (4, 3, 3, 3)}).name == "unknown"
    told = architecture(expected_shapes("vit_tiny_patch16_224", num_classes=10))
    assert (told.name, told.features, told.classes) == ("timm vit_tiny_patch16_224", 192, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_command_line_calls_a_network(name):
    """That of `--network NAME`'s own shapes, and of no other's."""
    encoder = encoder_from({"name": name, "num_classes": 5})
    size = 224 if name in TRANSFORMERS else 32
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (size, size, 3)))
    shapes = {key: one.shape for key, one in encoder_tensors(encoder, variables).items()}
    told = architecture({timm_key(key): shape for key, shape in shapes.items()} if name == "vit_s16" else shapes)
    assert (told.network_option, f"(--network {name})" in told.in_words) == (name, True)


def test_no_network_is_advised_that_the_command_line_lacks():
    assert set(NETWORKS) == COMMAND_LINE
    basic, wide = expected_shapes("resnet18"), expected_shapes("wide_resnet50_2")
    for shapes in (
        wide | {"conv1.weight": (64, 3, 3, 3)},
        {name: tuple(2 * side if side >= 64 else side for side in shape) for name, shape in basic.items()},
        basic | {"layer1.0.downsample.0.weight": (64, 64, 1, 1)},
        basic | {"conv1.weight": (64, 3, 5, 5)},
        expected_shapes("vit_tiny_patch16_224"),
        expected_shapes("vit_h_14"),
    ):
        told = architecture(shapes)
        assert told.name != "unknown"
        assert (told.network_option, "--network" in told.in_words) == ("", False)
    assert Architecture("resnet200").network_option == ""
    assert architecture(basic | {"conv1.weight": (64, 1, 7, 7)}).network_option == "resnet18"
    for name, option in {
        "torchvision vit_b_16 at 384 px without heads.head": "vit_b16",
        "timm vit_base_patch32_384": "vit_b32",
        "timm vit_large_patch16_224 without head": "vit_l16",
    }.items():
        assert Architecture(name).network_option == option


def test_cut_networks_and_prefixes():
    net = plain_learners.cut(plain_learners.resnet())
    given = {f"model.backbone.{name}": tensor.numpy() for name, tensor in net.state_dict().items()}
    origin = find_origin(given)
    assert (origin.source, origin.title, origin.owner) == ("", "", "model.backbone.")
    network = network_arrays(learner_arrays(origin, given), wanted=("conv1.weight",))
    wanted = arrays_of(plain_learners.resnet())
    assert {name: array.shape for name, array in network.items()} == {n: a.shape for n, a in wanted.items()}
    assert_identical(network_arrays(learner_arrays(origin, given)), arrays_of(net))
    assert [(one.name, one.verdict) for one in refusals(origin, given)] == [("model.backbone.*", "refused")]


def test_heads_layer_by_layer():
    shapes = {
        name: array.shape for name, array in learner_arrays(find_origin(theirs("C-sim")), theirs("C-sim")).items()
    }
    layers = head_layers(shapes, "online.projector.")
    assert [layer["kind"] for layer in layers] == ["linear", "batch norm"] * 3
    assert layers_in_words(layers[-2:]) == "Linear 32 -> 16 without bias, batch norm 16 without scale and bias"
    assert head_layers({"online.projector.2.alpha": (3,)}, "online.projector.") == [{"name": "2", "kind": "unknown"}]


def test_networks_of_learners_that_are_not_read():
    assert set(UNREAD) <= {family for family, _ in FAMILIES}
    net = arrays_of(plain_learners.resnet())
    given = {f"online_network.encoder.{name}": array for name, array in net.items()}
    given |= {"predictor.model.0.weight": np.zeros((4, 4), np.float32)}
    origin = find_origin(given)
    assert (origin.source, origin.title) == ("", "BYOL learner, lightning-bolts")
    assert_identical(network_arrays(learner_arrays(origin, given)), net)
    assert [one.name for one in refusals(origin, given)] == ["predictor.model.0.weight"]


def test_containers_and_their_prefixes(tmp_path):
    weights = {"module._orig_mod.fc.bias": torch.zeros(3), "module._orig_mod.fc._orig_mod.weight": torch.ones(3, 2)}
    lightning = {"epoch": 3, "global_step": 500, "pytorch-lightning_version": "2.6.6", "state_dict": weights}
    lightning |= {"optimizer_states": [{"state": {0: {"step": torch.tensor(500.0)}}}]}
    for legacy in (False, True):
        torch.save(lightning, tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
        contents = read_contents(tmp_path / "x.ckpt")
        assert list(contents.state_dict) == ["fc.bias", "fc.weight"]
        assert contents.prefixes[0] == "module._orig_mod."
        assert contents.facts() == {
            "beside": ["epoch", "global_step", "pytorch-lightning_version", "optimizer_states"],
            "optimiser": True,
            "step": 500,
            "epoch": 3,
            "lightning": "2.6.6",
        }
    torch.save({"model": {"fc.bias": torch.zeros(3)}, "optimizer": {}}, tmp_path / "x.pt")
    facts = read_contents(tmp_path / "x.pt").facts()
    assert (facts["beside"], facts["optimiser"], facts["step"]) == (["optimizer"], False, None)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_prefixes_in_flat_files(suffix, tmp_path):
    interop.save_state_dict(tmp_path / f"x{suffix}", {"module.fc.bias": np.zeros(3, np.float32)})
    contents = read_contents(tmp_path / f"x{suffix}")
    assert (list(contents.state_dict), contents.prefixes, contents.beside) == (["fc.bias"], ("module.",), {})


def test_jax_arrays_are_looked_at_too():
    given = {name: jnp.asarray(array) for name, array in theirs("C").items()}
    assert find_origin(given).layout == "C"
    assert all(isinstance(array, np.ndarray) for array in learner_arrays(find_origin(given), given).values())
