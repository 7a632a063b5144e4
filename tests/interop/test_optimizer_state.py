"""Optimiser states of torch and optax: a run moved midway takes the steps of one that stayed; every fault is named."""

import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest
import torch
import torchvision
from byol_learners import state_of, torch_learner
from hypothesis import given, settings
from optimizer_runs import PAIRS, PARTS, RATE, WRAPPED, layers, moved_learners, moved_runs, native, small, trained
from plain_learners import CLASSES, Lightly, SoloLearn, cut, learner, resnet
from timm.models.vision_transformer import VisionTransformer
from weight_samples import arrays, assert_identical

import interop
from byol_jax import nets
from byol_jax.errors import StateDictMismatchError
from byol_jax.tree import flatten, unflatten
from interop.arrays import as_numpy, as_tensor, dtype_named
from interop.formats.containers import OPTIMISERS
from interop.inspect.commands import inspect_file
from interop.optimizers.names import positions_by_name
from tests.parity.reference import traced
from tests.parity.trajectory import SMALL, Network, blank

TRACED = Network(
    SMALL.theirs, lambda: interop.from_torch_module(SMALL.theirs(), image_size=17, verify=False), 17, traced
)

EXACT, AS_BYOL = 1e-15, 1e-10
"""Measured: 2e-16 with the same gradients; 1.4e-11 with BYOL's, at a rate of 0.01."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PAIRS, *WRAPPED, pytest.param("parts", marks=pytest.mark.slow)])
def test_a_run_that_moves_takes_the_steps_of_one_that_stays(name):
    """The same gradients in both frameworks, float64; there after three steps, back after six."""
    with jax.enable_x64(True):
        differences = moved_runs((PAIRS | WRAPPED | PARTS)[name], scheduled=name not in PAIRS)
    assert max(differences) <= EXACT


def test_byol_pytorchs_learner_needs_no_names():
    """Its optimiser is over `learner.parameters()`: the target's have no gradient, nor has what is behind the layer."""
    module, like = torch_learner("C"), state_of("C")
    optimizer = trained(module, unused=["target_encoder.", "net.7."])
    state = interop.from_torch_opt_state(optimizer.state_dict(), like=like)
    for opt_state in (like, like.opt_state):
        names = [name for name, _ in module.named_parameters()]
        named = interop.from_torch_opt_state(optimizer.state_dict(), like=opt_state, parameter_names=names)
        assert_identical(flatten(named[0].nu), flatten(state[0].nu))
    theirs = optimizer.state[module.online_predictor[3].weight]["exp_avg_sq"]
    np.testing.assert_array_equal(state[0].nu["predictor"]["3"]["kernel"].T, theirs)
    new = torch.optim.Adam(module.parameters(), lr=RATE)
    new.load_state_dict(interop.to_torch_opt_state(like.replace(opt_state=state), like=new.state_dict()))
    assert_same_state(new.state_dict()["state"], optimizer.state_dict()["state"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_byol_that_moves_takes_the_steps_of_byol_pytorch(name, tmp_path):
    assert max(moved_learners(SMALL, PAIRS[name], tmp_path, named=False)) <= AS_BYOL


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Adam, L2", "Nesterov, L2"])
def test_byol_around_a_traced_network_moves_too(name, tmp_path):
    """Names from `learner.state_dict()`, buffers and second names included."""
    assert max(moved_learners(TRACED, PAIRS[name], tmp_path, named=True)) <= AS_BYOL


FLOATS = ("float16", "float32", "float64", "bfloat16")


@st.composite
def optimizers(draw):
    """A torch optimiser's state of any bits, its parameters' names, and an optax state that it fits."""
    kind, names, params, state = draw(st.sampled_from(["adam", "sgd"])), [], {}, {}
    step = draw(st.integers(1, 1000))
    for number in draw(st.permutations(range(draw(st.integers(1, 4))))):
        shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
        dtype, rank = draw(st.sampled_from(FLOATS)), len(shape)
        ours = tuple(shape[axis] for axis in ((*range(2, rank), 1, 0) if rank > 1 else (0,)))
        place, leaf = len(names), "kernel" if rank > 1 else draw(st.sampled_from(["scale", "bias"]))
        names.append(f"layer{number}.{'bias' if leaf == 'bias' else 'weight'}")
        params[f"layer{number}/{leaf}"] = np.zeros(ours, dtype_named(dtype))
        moments = {"adam": ["exp_avg", "exp_avg_sq"], "sgd": ["momentum_buffer"]}[kind]
        state[place] = {"step": torch.tensor(float(step))} if kind == "adam" else {}
        state[place] |= {name: as_tensor(draw(arrays((dtype,), shape)).reshape(shape)) for name in moments}
        if draw(st.booleans()) and place:  # torch never had a gradient for it
            del state[place]
    group = {"lr": 0.1, "betas": (0.9, 0.99), "amsgrad": False} if kind == "adam" else {"lr": 0.1, "momentum": 0.9}
    optimizer = optax.adam(0.1) if kind == "adam" else optax.sgd(0.1, momentum=0.9)
    order = draw(st.permutations(list(state)))
    theirs = {
        "state": {place: state[place] for place in order},
        "param_groups": [group | {"params": [*range(len(names))]}],
    }
    return theirs, names, (optimizer, unflatten(params))


@settings(max_examples=40)
@given(optimizers())
def test_a_round_trip_gives_the_same_bits(case):
    theirs, names, (optimizer, params) = case
    with jax.enable_x64(True):
        like = jax.eval_shape(optimizer.init, params)
        state = interop.from_torch_opt_state(theirs, like=like, parameter_names=names)
        again = interop.to_torch_opt_state(state, like=theirs, parameter_names=names)
    assert jax.tree.structure(state) == jax.tree.structure(like)
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [leaf.dtype for leaf in jax.tree.leaves(like)]
    assert again["param_groups"] == theirs["param_groups"]
    assert_same_state(again["state"], theirs["state"])


def assert_same_state(one, other):
    assert set(one) == set(other)
    for place in one:
        pair = ({name: as_numpy(value, name) for name, value in entry[place].items()} for entry in (one, other))
        assert_identical(*pair)


LEARNERS = {
    "lightly-examples": (lambda: Lightly(cut(resnet())), {}, ["backbone_", "projection_head_"]),
    "lightly-benchmarks": (
        lambda: Lightly(resnet(), "teacher_{}", classifier=True),
        {"num_classes": CLASSES},
        ["teacher_"],
    ),
    "solo-learn": (lambda: SoloLearn(resnet()), {}, ["momentum_"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LEARNERS)
def test_other_libraries_names_lead_to_the_same_parameters(layout):
    """A classifier that they train beside, and a bias that our heads have more, go nowhere."""
    make, options, unused = LEARNERS[layout]
    module, like = make(), blank(learner(**options))
    optimizer = trained(module, unused=unused)
    names = [name for name, _ in module.named_parameters()]
    state = interop.from_torch_opt_state(optimizer.state_dict(), like=like, parameter_names=names)
    backbone = "backbone.4.0.conv1.weight" if layout == "lightly-examples" else "backbone.layer1.0.conv1.weight"
    theirs = optimizer.state[module.get_parameter(backbone)]["exp_avg"].numpy()
    ours = np.asarray(state[0].mu["encoder"]["layer1"]["0"]["conv1"]["kernel"])
    np.testing.assert_array_equal(ours.transpose(3, 2, 0, 1), theirs)
    assert int(state[0].count) == 2
    again = interop.to_torch_opt_state(state, like=optimizer.state_dict(), parameter_names=module.state_dict())
    classifier = {place for place, name in enumerate(names) if "classifier" in name}
    expected = {k: v for k, v in optimizer.state_dict()["state"].items() if k not in classifier}
    assert_same_state(again["state"], expected)


@pytest.mark.parametrize(
    ("fronts", "below"),
    [
        (("learner.net.", "learner.online_encoder.projector.", "learner.online_predictor."), ""),
        (("net.", "byol.online_encoder.projector.", "byol.online_predictor."), ""),
        (("online_encoder.net.", "online_encoder.projector.", "online_predictor."), "net."),
        (("model.backbone.", "model.projection_head.layers.", "model.prediction_head.layers."), ""),
        (("module._orig_mod.encoder.", "module._orig_mod.projector.", "module._orig_mod.predictor."), ""),
        (("encoder.", "projector.", "predictor."), ""),
    ],
)
def test_names_of_owners_and_earlier_releases(fronts, below):
    layers = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    keys = ["encoder.0.weight", *(f"{part}.{name}" for part in ("projector", "predictor") for name in layers)]
    names = [f"{fronts[0]}0.weight"] + [f"{front}{below}{name}" for front in fronts[1:] for name in layers]
    assert positions_by_name(names, keys).positions == {key: place for place, key in enumerate(keys)}


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_attentions_one_tensor_is_three_leaves_here(library):
    """A native vision transformer's query, key and value; timm's names, where they are given."""
    if library == "timm":
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 6, "depth": 2, "num_heads": 2, "num_classes": 3}
        module = VisionTransformer(**sizes)
    else:
        module = torchvision.models.VisionTransformer(8, 4, 2, 2, 6, 24, num_classes=3)
    encoder = nets.vit(2, width=6, num_heads=2, patch_size=4, num_classes=3)
    params = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (8, 8, 3))).params
    like, optimizer = jax.eval_shape(optax.adam(RATE).init, params), trained(module)
    names = [name for name, _ in module.named_parameters()]
    state = interop.from_torch_opt_state(optimizer, like=like, parameter_names=names)
    attention = state[0].mu["encoder"]["layers"]["encoder_layer_1"]["self_attention"]
    ending = "blocks.1.attn.qkv.weight" if library == "timm" else "layer_1.self_attention.in_proj_weight"
    layer = next(name for name in names if name.endswith(ending))
    theirs = optimizer.state[module.get_parameter(layer)]["exp_avg"].chunk(3)
    for part, rows in zip(("query", "key", "value"), theirs, strict=True):
        np.testing.assert_array_equal(attention[part]["kernel"].T, rows)
    again = interop.to_torch_opt_state(state, like=optimizer, parameter_names=names)
    assert_same_state(again["state"], optimizer.state_dict()["state"])


def test_zeros_of_a_gradient_that_was_never_used_are_passed_over():
    """A parameter that isn't ours and had zeros as its gradient: all-reduced, say, where others leave it out."""
    module = layers().float()
    module.unused = torch.nn.Linear(2, 2)
    names = [name for name, _ in module.named_parameters()]
    optimizer = trained(module, unused=["unused"])
    for entry in (optimizer.state[tensor] for tensor in module.unused.parameters()):
        entry |= {"step": torch.tensor(2.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    state = interop.from_torch_opt_state(optimizer, like=small(), parameter_names=names)
    assert int(state[0].count) == 2
    entry["exp_avg"] += 1
    with pytest.raises(StateDictMismatchError, match=r"2 unexpected: unused\.bias\.exp_avg, unused\.bias\.exp_avg_sq"):
        interop.from_torch_opt_state(optimizer, like=small(), parameter_names=names)


def test_whole_checkpoints_and_named_optimisers_name_their_parameters():
    module = layers().float()
    optimizer = trained(module)
    plain = interop.from_torch_opt_state(optimizer.state_dict(), like=small())
    named = torch.optim.Adam(module.named_parameters(), lr=RATE)
    named.load_state_dict(optimizer.state_dict())
    assert "param_names" in named.state_dict()["param_groups"][0]
    names = [name for name, _ in module.named_parameters()]
    by_name = {"state": dict(zip(names, optimizer.state_dict()["state"].values(), strict=True))}
    by_name["param_groups"] = [{"params": names}]
    for theirs in (
        optimizer,
        named.state_dict(),
        {"model": module.state_dict(), "optimizer": optimizer.state_dict()},
        {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 3},
        by_name,
    ):
        state = interop.from_torch_opt_state(theirs, like=small())
        assert_identical(flatten(state[0].mu), flatten(plain[0].mu))
        assert int(state[0].count) == 2
    written = interop.to_torch_opt_state(plain, like=by_name)
    assert_same_state(written["state"], by_name["state"])


@pytest.mark.parametrize("widths", [(3, 3, 3), (4, 3, 2)])
def test_several_groups_have_an_order_of_their_own(widths):
    """The last layer's first, as where it has another rate: the weights beside don't tell, different shapes do."""
    first, inner, last = widths
    module = torch.nn.Sequential(torch.nn.Linear(first, inner), torch.nn.ReLU(), torch.nn.Linear(inner, last))
    optimizer = trained(module, lambda p: torch.optim.AdamW([{"params": p[2:]}, {"params": p[:2]}], lr=RATE))
    like = optax.adam(RATE).init(native(dict(module.named_parameters())))
    alone, names = optimizer.state_dict(), ["2.weight", "2.bias", "0.weight", "0.bias"]
    beside = {"model": module.state_dict(), "optimizer": alone}
    found = [interop.from_torch_opt_state(alone, like=like, parameter_names=names)]
    if len(set(widths)) > 1:
        found += [interop.from_torch_opt_state(theirs, like=like) for theirs in (alone, beside, optimizer)]
        assert_same_state(interop.to_torch_opt_state(found[0], like=alone)["state"], alone["state"])
    else:
        for theirs in (alone, beside, optimizer):
            with pytest.raises(
                StateDictMismatchError, match=r"0 may be 0\.weight, 2\.weight; give .*, in the order of param_groups"
            ):
                interop.from_torch_opt_state(theirs, like=like)
    for state in found:
        for layer in ("0", "2"):
            theirs = optimizer.state[module.get_parameter(f"{layer}.weight")]["exp_avg"]
            np.testing.assert_array_equal(state[0].mu[layer]["kernel"].T, theirs)


def test_nothing_is_shared_and_nothing_half_written():
    module, like = layers().float(), small()
    optimizer = trained(module)
    state = interop.from_torch_opt_state(optimizer.state_dict(), like=like)
    before = np.asarray(state[0].mu["1"]["scale"]).copy()
    optimizer.state[module[1].weight]["exp_avg"].fill_(9)
    np.testing.assert_array_equal(state[0].mu["1"]["scale"], before)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((like, state))]
    assert len(set(pointers)) == len(pointers)
    written = interop.to_torch_opt_state(state, like=optimizer)
    written["state"][2]["exp_avg"].fill_(3)
    np.testing.assert_array_equal(state[0].mu["1"]["scale"], before)
    assert optimizer.param_groups[0]["params"][0] is module[0].weight


def test_shardings_stay_those_of_like():
    everywhere = jax.sharding.NamedSharding(jax.make_mesh((8,), ("devices",)), jax.sharding.PartitionSpec())
    like = jax.device_put(small(), everywhere)
    state = interop.from_torch_opt_state(trained(layers().float()), like=like)
    assert all(leaf.sharding.is_equivalent_to(everywhere, leaf.ndim) for leaf in jax.tree.leaves(state))
    assert (int(state[0].count), bool(state[0].nu["3"]["kernel"].all())) == (2, True)


def test_before_the_first_step_there_is_nothing_to_move():
    optimizer = torch.optim.Adam(layers().float().parameters(), lr=RATE)
    state = interop.from_torch_opt_state(optimizer.state_dict(), like=small())
    assert_identical(flatten(state[0].mu), flatten(small()[0].mu))
    assert interop.to_torch_opt_state(state, like=optimizer) == optimizer.state_dict()


def test_injected_hyperparameters_stay_and_shapes_are_enough():
    optimizer = trained(layers().float(), lambda p: torch.optim.AdamW(p, lr=RATE))
    like = small(optax.inject_hyperparams(optax.adamw)(learning_rate=0.25))
    state = interop.from_torch_opt_state(optimizer.state_dict(), like=like)
    assert (float(state.hyperparams["learning_rate"]), int(state.count), int(state.inner_state[0].count)) == (
        0.25,
        2,
        2,
    )
    plain = interop.from_torch_opt_state(optimizer.state_dict(), like=jax.eval_shape(small))
    assert_identical(flatten(plain[0].nu), flatten(state.inner_state[0].nu))


@pytest.mark.parametrize("entry", OPTIMISERS)
def test_every_name_of_an_optimisers_entry_is_known_everywhere(entry, tmp_path):
    """Read as one here, said by `inspect`, and no weights are looked for in it."""
    module = layers().float()
    theirs = trained(module).state_dict()
    state = interop.from_torch_opt_state({"net": module.state_dict(), entry: theirs}, like=small())
    assert_identical(flatten(state[0].mu), flatten(interop.from_torch_opt_state(theirs, like=small())[0].mu))
    torch.save({"net": module.state_dict(), entry: {"state": {"0": module.state_dict()}}}, tmp_path / "x.pt")
    inspection = inspect_file(tmp_path / "x.pt")
    assert (inspection["container"]["optimiser"], list(inspection["weights"]["sets"])) == (True, ["net"])
