"""DeepMind's names for networks of any depth and kind, what becomes of the classifier, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from deepmind_files import learner_of, pickles
from weight_samples import assert_identical

import interop
from byol_jax import ConfigurationError, make_learner, nets
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from byol_jax.tree import flatten
from interop.learners.fitting import AbsentTargetWarning, PaddingWarning
from interop.learners.reading import read_weights
from tests.parity.trajectory import QUICK, blank

HEADS = {"projection_size": 8, "projection_hidden_size": 12}
LAYERS = {"0": "linear", "1": "batch_norm", "3": "linear_1"}
LEAVES = {"kernel": "w", "bias": "b", "scale": "scale", "mean": "mean_ema", "var": "var_ema"}
DEEP = {"stages": (1, 12, 1, 1), "width": 4, "num_classes": 3}


def network(**options):
    return nets.resnet(**DEEP | {"padding": "same", "shortcut": "always"} | options)


def learner(encoder=None, *, size=33, layer="avgpool", **options):
    encoder = encoder or network(**options)
    return make_learner(encoder, image_size=size, hidden_layer=layer, **HEADS)


def random_state(one, seed=0):
    """A state whose every leaf differs from every other's; counters are 8."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.dtype == np.int32:
            return jnp.asarray(8, jnp.int32)
        array = random.uniform(0.5, 1.5, leaf.shape)
        if leaf.ndim > 1:
            array = random.normal(size=leaf.shape) / np.sqrt(leaf[..., 0].size)  # by fan-in, as the sums stay about 1
        return jnp.asarray(array.astype(leaf.dtype))

    state = blank(one)
    networks = jax.tree.map(draw, (state.online, state.target))
    return without_second_bias(state.replace(online=networks[0], target=networks[1]))


def without_second_bias(state):
    """DeepMind's heads have none, which is a zero here."""
    for network in (state.online, state.target):
        for head in set(network.params) - {"encoder"}:
            network.params[head]["3"]["bias"] *= 0
    return state


def haiku_module(path):
    """A second reading: "encoder/layer1/0/downsample/0" is "net/~/block_group_0/~/block_0/~/shortcut_conv"."""
    part, *rest = path.split("/")
    if part != "encoder":
        return f"{part}/{LAYERS[rest[0]]}"
    if rest == ["fc"]:
        return "classifier"
    if len(rest) == 1:
        return {"conv1": "net/~/initial_conv", "bn1": "net/~/initial_batchnorm"}[rest[0]]
    block = f"net/~/block_group_{int(rest[0][-1]) - 1}/~/block_{rest[1]}/~"
    if rest[2] == "downsample":
        return f"{block}/{['shortcut_conv', 'shortcut_batchnorm'][int(rest[3])]}"
    kind = {"conv": "conv", "bn": "batchnorm"}[rest[2][:-1]]
    return f"{block}/{kind}_{int(rest[2][-1]) - 1}"


def haiku(state):
    """The experiment that holds this state; the target has a predictor too, as DeepMind's has."""
    experiment = {}
    for network in ("online", "target"):
        variables = getattr(state, network)
        params = experiment.setdefault(f"{network}_params", {})
        stats = experiment.setdefault(f"{network}_state", {})
        for path, leaf in flatten(variables.params).items():
            branch, _, name = path.rpartition("/")
            module, array = haiku_module(branch), np.asarray(leaf)
            if module.endswith("/linear_1") and name == "bias":
                continue
            norm = "norm" in module
            shape = (1, 1, 1, -1) if module.startswith("net") else (1, -1)
            key = {"scale": "scale", "bias": "offset"}[name] if norm else LEAVES[name]
            params.setdefault(module, {})[key] = array.reshape(shape) if norm else array
        for path, leaf in flatten(variables.stats).items():
            branch, _, name = path.rpartition("/")
            if name in ("mean", "var"):
                array = np.asarray(leaf).reshape((1, 1, 1, -1) if branch.startswith("encoder") else (1, -1))
                average = {"average": array, "hidden": 0.5 * array, "counter": np.asarray(8, np.int32)}
                stats[f"{haiku_module(branch)}/~/{LEAVES[name]}"] = average
    experiment["target_params"] |= {"predictor/linear_1": {"w": np.zeros((12, 8), np.float32)}}
    return {"experiment_state": experiment | {"opt_state": None}, "step": 4, "rng": np.zeros(2, np.uint32)}


def leaves(state):
    networks = {"online": state.online, "target": state.target}
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(networks)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"block": "bottleneck", "stages": (2, 11)}, {"num_classes": None}, {"stages": (1,) * 4, "width": 10}],
)
def test_any_depth_and_width_comes_out_as_it_went_in(options):
    """Two-digit blocks among them, and the suffix that some files have on the stem's modules."""
    one = learner(**options)
    state = random_state(one)
    content = haiku(state)
    for names in content["experiment_state"].values():
        for name in [name for name in names or () if "/initial_" in name]:
            suffixed = name.replace("initial_conv", "initial_conv_1").replace(
                "initial_batchnorm", "initial_batchnorm_1"
            )
            names[suffixed] = names.pop(name)
    loaded = interop.load_byol_checkpoint(content, like=blank(one), encoder=network())
    assert_identical(leaves(loaded), leaves(state))


@pytest.mark.slow
def test_the_classifier_stays_where_there_is_an_fc():
    state = random_state(learner())
    without = blank(learner(num_classes=None))
    loaded = interop.load_byol_checkpoint(haiku(state), like=without, encoder=network())
    assert "fc" not in loaded.online.params["encoder"]
    assert_identical(leaves(loaded), {name: leaf for name, leaf in leaves(state).items() if "'fc'" not in name})
    with pytest.raises(StateDictMismatchError, match=r"4 wrong shape: .*encoder\.fc\.weight \(given \[3, 32\], exp"):
        interop.load_byol_checkpoint(haiku(state), like=blank(learner(num_classes=4)))


@pytest.mark.slow
def test_linear_evaluations_file_gives_its_own_classifier():
    """Its backbone is the whole online tree; there is no target, which is said and made up for."""
    one = learner()
    state = random_state(one)
    experiment = haiku(state)["experiment_state"]
    linear = {"w": np.ones((32, 3), np.float32), "b": np.arange(3, dtype=np.float32)}
    content = {
        "experiment_state": {
            "backbone_params": experiment["online_params"],
            "classif_params": {"linear": linear},
            "backbone_state": experiment["online_state"],
            "backbone_opt_state": None,
            "classif_opt_state": {"linear": linear},
        }
    }
    with pytest.warns(AbsentTargetWarning, match="holds no target network; a copy of the online") as caught:
        loaded = interop.load_byol_checkpoint(content, like=blank(one), encoder=network())
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(loaded.online.params["encoder"]["fc"]["kernel"], linear["w"])
    np.testing.assert_array_equal(loaded.online.params["encoder"]["fc"]["bias"], linear["b"])
    online = {name.replace("online", "target"): leaf for name, leaf in leaves(loaded).items() if "online" in name}
    copied = {name: leaf for name, leaf in leaves(loaded).items() if "target" in name}
    assert_identical(copied, {name: online[name] for name in copied})


@pytest.fixture(scope="module")
def tiny18(tmp_path_factory):
    path = tmp_path_factory.mktemp("deepmind") / "pretrain.pkl"
    path.write_bytes(pickles()["tiny18/pretrain.pkl"])
    return path


@pytest.mark.slow
def test_basic_blocks_need_the_extra_shortcut():
    """torchvision's ResNet-18 has none in its first stage; it is never dropped."""
    content = haiku(random_state(learner()))
    with pytest.raises(StateDictMismatchError, match=r'layer1\.0\.downsample\.0\.weight.*shortcut="always"'):
        interop.load_byol_checkpoint(content, like=blank(learner(shortcut="torch")))


def test_pre_activation_networks_are_refused(tiny18):
    state_dict = read_weights(tiny18)[1].arrays
    final = {
        f"online_params/tiny_res_net/~/final_batchnorm/{leaf}": np.ones((1, 1, 1, 8)) for leaf in ("scale", "offset")
    }
    with pytest.raises(CheckpointFormatError, match=r"a pre-activation ResNet.*only the post-activation"):
        interop.load_byol_checkpoint(state_dict | final, like=None)


def test_what_does_not_fit_is_named(tiny18):
    state_dict = read_weights(tiny18)[1].arrays
    like = blank(learner_of("tiny18"))
    strange = {"online_params/logits/w": np.ones((8, 5), np.float32)}
    with pytest.raises(StateDictMismatchError, match="1 unexpected: online_params/logits/w"):
        interop.load_byol_checkpoint(state_dict | strange, like=like)
    del state_dict["target_state/projector/batch_norm/~/var_ema/average"]
    with pytest.raises(StateDictMismatchError, match=r"1 missing: target\.projector\.1\.running_var"):
        interop.load_byol_checkpoint(state_dict, like=like)
    with pytest.raises(CheckpointFormatError, match="make the learner with use_momentum=True and simplicial"):
        interop.load_byol_checkpoint(state_dict, like=like.replace(target=like.target._replace(params={}, stats={})))
    second = {"online_params/x/~/initial_conv/w": np.ones((7, 7, 3, 64), np.float32)}
    with pytest.raises(CheckpointFormatError, match=r"would both be online\.encoder\.conv1\.weight"):
        interop.load_byol_checkpoint(state_dict | second, like=like)
    with pytest.raises(CheckpointFormatError, match="expected online_params or backbone_params"):
        interop.load_byol_checkpoint({"fc.bias": np.ones(3)}, like=like, source="deepmind")


def test_it_is_not_written(tmp_path):
    with pytest.raises(CheckpointFormatError, match="isn't written; use another layout"):
        interop.save_byol_checkpoint(tmp_path / "x.npz", None, layout="deepmind")
    with pytest.raises(ConfigurationError, match=r"use one of .*deepmind"):
        interop.load_byol_checkpoint({}, like=None, source="deepmynd")


@pytest.mark.long(tenth=False)
def test_a_traced_torchvision_network_takes_them_and_is_warned_of():
    """Leaves stay torch's; at 33 pixels, where both paddings agree, so do the networks, and at 32 they don't."""
    native = {
        size: learner(stages=(1, 1, 1, 1), block="bottleneck", width=64, num_classes=3, size=size) for size in (33, 32)
    }
    state = random_state(native[33])
    module = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=3)
    for size in (33, 32):
        traced = learner(interop.from_torch_module(module, image_size=size, verify=False), size=size)
        with pytest.warns(PaddingWarning, match=r"agree only if the network pads so") as caught:
            loaded = interop.load_byol_checkpoint(haiku(state), like=blank(traced))
        assert "encoder=" not in str(caught[0].message)
        own = loaded.online.params["encoder"]["layer2"]["0"]["downsample"]["0"]["weight"]
        kernel = state.online.params["encoder"]["layer2"]["0"]["downsample"]["0"]["kernel"]
        np.testing.assert_array_equal(own, np.asarray(kernel).transpose(3, 2, 0, 1))
        images = np.random.default_rng(0).random((2, size, size, 3), np.float32)
        got = jax.jit(traced.embed, compiler_options=QUICK)(loaded, images)
        expected = jax.jit(native[size].embed, compiler_options=QUICK)(state, images)
        off = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert off < 1e-5 if size == 33 else off > 1e-3
    assert isinstance(module, torch.nn.Module)
