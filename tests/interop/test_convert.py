"""Variables to torch's state dicts and back: bit-identical, strict, and everything wrong said at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_samples import arrays, assert_identical

from byol_jax import ConfigurationError, Variables
from byol_jax.errors import StateDictMismatchError
from interop import from_torch_state_dict, to_torch_state_dict
from interop.weights.names import native_order, torch_order

EXACT = ("bool", "uint8", "int8", "int16", "int32", "float16", "bfloat16", "float32", "float64", "int64", "complex64")
KERNEL_RANKS = {"linear": 2, "conv1d": 3, "conv2d": 4, "conv3d": 5}


@st.composite
def native_variables(draw):
    """A few layers of native leaves at random depths, of any type and any bits."""
    params, stats = {}, {}
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([*KERNEL_RANKS, "norm"]))
        branches = [f"layer{index}", *draw(st.lists(st.sampled_from(["0", "1", "conv"]), max_size=2))]
        dtypes = (draw(st.sampled_from(EXACT)),)
        layer_params, layer_stats = params, stats
        for branch in branches:
            layer_params, layer_stats = layer_params.setdefault(branch, {}), layer_stats.setdefault(branch, {})
        if kind == "norm":
            shape = (draw(st.integers(0, 3)),)
            layer_params |= {name: draw(arrays(dtypes, shape)) for name in ("scale", "bias")}
            layer_stats |= {name: draw(arrays(dtypes, shape)) for name in ("mean", "var")}
            layer_stats["num_batches_tracked"] = np.asarray(draw(st.integers(0, 2**31 - 1)), np.int32)
        else:
            shape = tuple(draw(st.lists(st.integers(0, 3), min_size=KERNEL_RANKS[kind], max_size=KERNEL_RANKS[kind])))
            layer_params["kernel"] = draw(arrays(dtypes, shape))
    return Variables(params, stats)


def abstract(variables):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)


def assert_same_variables(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    numbered = [dict(enumerate(jax.tree.leaves(variables))) for variables in (one, other)]
    assert_identical(*numbered)


@pytest.mark.slow
@settings(deadline=None)
@given(native_variables())
def test_a_round_trip_is_the_identity(variables):
    state_dict = to_torch_state_dict(variables)
    assert_same_variables(from_torch_state_dict(state_dict, like=abstract(variables)), variables)
    again = to_torch_state_dict(from_torch_state_dict(state_dict, like=variables))
    assert_identical(again, state_dict)


@pytest.mark.slow
@settings(deadline=None)
@given(native_variables())
def test_what_comes_out_is_fresh_and_contiguous(variables):
    state_dict = to_torch_state_dict(variables)
    loaded = from_torch_state_dict(state_dict, like=variables)
    for array in state_dict.values():
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not any(np.shares_memory(array, leaf) for leaf in jax.tree.leaves(variables))
        assert not any(np.shares_memory(array, np.asarray(leaf)) for leaf in jax.tree.leaves(loaded))


@pytest.mark.parametrize("rank", range(6))
def test_native_and_torch_orders_are_inverse(rank):
    for leaf in ("kernel", "scale", ""):
        there, back = torch_order(leaf, rank), native_order(leaf, rank)
        assert tuple(there[axis] for axis in back) == tuple(range(rank))


@pytest.mark.parametrize(("rank", "groups"), [(1, 1), (2, 1), (3, 1), (2, 2), (1, 4)])
def test_a_convolution_computes_what_torchs_does(rank, groups):
    torch = pytest.importorskip("torch")
    module = [torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d][rank - 1](
        4, 8, (2, 3, 4)[:rank], groups=groups
    ).double()
    images = np.random.default_rng(0).normal(size=(2, 4, *(5, 6, 7)[:rank]))
    like = Variables(
        {"kernel": np.zeros((*(2, 3, 4)[:rank], 4 // groups, 8)), "bias": np.zeros(8)},
        {},
    )
    params = from_torch_state_dict(module.state_dict(), like=like).params
    space = "DHW"[3 - rank :]
    with jax.enable_x64(True):
        result = jax.lax.conv_general_dilated(
            jnp.asarray(images),
            jnp.asarray(params["kernel"]),
            (1,) * rank,
            "VALID",
            dimension_numbers=(f"NC{space}", f"{space}IO", f"NC{space}"),
            feature_group_count=groups,
        ) + jnp.asarray(params["bias"]).reshape(-1, *(1,) * rank)
    np.testing.assert_allclose(result, module(torch.from_numpy(images)).detach().numpy(), rtol=0, atol=1e-14)


def test_a_linear_layer_computes_what_torchs_does():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(5, 3).double()
    like = Variables({"kernel": np.zeros((5, 3)), "bias": np.zeros(3)}, {})
    params = from_torch_state_dict(module.state_dict(), like=like).params
    x = np.random.default_rng(0).normal(size=(2, 5))
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(x @ params["kernel"] + params["bias"], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors_of_every_float_come_over_exactly(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype)).requires_grad_()
    like = Variables({"kernel": jax.ShapeDtypeStruct((4, 3), jnp.dtype(dtype))}, {})
    kernel = from_torch_state_dict({"weight": tensor}, like=like).params["kernel"]
    assert isinstance(kernel, np.ndarray if dtype == "float64" else jax.Array)
    assert kernel.dtype == dtype
    assert np.array_equal(np.asarray(kernel, np.float64).T, tensor.detach().double().numpy())


def test_traced_networks_pass_through_by_their_own_names():
    params = {"block": {"scale": np.ones(3), "conv": {"weight": np.ones((4, 3, 2, 2)), "kernel": np.ones((2, 3))}}}
    stats = {"block": {"bn": {"running_mean": np.ones(4), "num_batches_tracked": np.asarray(3, np.int32)}}}
    state_dict = to_torch_state_dict(Variables(params, stats))
    names = (
        "block.conv.kernel",
        "block.conv.weight",
        "block.scale",
        "block.bn.num_batches_tracked",
        "block.bn.running_mean",
    )
    assert tuple(state_dict) == names
    assert state_dict["block.conv.kernel"].shape == (2, 3)
    assert state_dict["block.bn.num_batches_tracked"].dtype == np.int64
    assert_same_variables(
        from_torch_state_dict(state_dict, like=abstract(Variables(params, stats))), Variables(params, stats)
    )


def test_a_traced_encoder_beside_native_heads_keeps_its_names_and_they_change_theirs():
    params = {"encoder": {"fc": {"weight": np.ones((4, 3))}}, "projector": {"0": {"kernel": np.ones((4, 5))}}}
    state_dict = to_torch_state_dict(Variables(params, {}))
    assert {name: array.shape for name, array in state_dict.items()} == {
        "encoder.fc.weight": (4, 3),
        "projector.0.weight": (5, 4),
    }


LIKE = Variables(
    {
        "fc": {"kernel": np.zeros((4, 2), np.float32), "bias": np.zeros(2, np.float32)},
        "bn": {"scale": np.ones(3, np.float32)},
    },
    {"bn": {"mean": np.full(3, 5, np.float32), "num_batches_tracked": np.asarray(9, np.int32)}},
)


def test_everything_that_differs_is_listed_at_once():
    state_dict = to_torch_state_dict(LIKE)
    state_dict["fc.weight"] = state_dict["fc.weight"].T
    state_dict["fc.bias"] = state_dict["fc.bias"].astype(np.float16)
    state_dict["bn.num_batches_tracked"] = np.asarray(2**31)
    state_dict["bn.runing_mean"] = state_dict.pop("bn.running_mean")
    with pytest.raises(StateDictMismatchError) as caught:
        from_torch_state_dict(state_dict, like=LIKE)
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "1 missing: bn.running_mean (nearest: bn.runing_mean)",
        "1 unexpected: bn.runing_mean",
        "1 wrong shape: fc.weight (given [4, 2], expected [2, 4])",
        "1 wrong dtype: fc.bias (given float16, expected float32)",
        'dtype="like" converts types',
        "1 wrong value: bn.num_batches_tracked (values up to 2147483648 don't fit int32)",
    ):
        assert words in message


def test_strict_false_ignores_what_is_unexpected_and_keeps_what_is_missing():
    given_dict = {"fc.weight": np.ones((2, 4), np.float32), "head.weight": np.ones(1)}
    with pytest.raises(StateDictMismatchError, match="missing"):
        from_torch_state_dict(given_dict, like=LIKE)
    loaded = from_torch_state_dict(given_dict, like=LIKE, strict=False)
    assert loaded.params["fc"]["kernel"].tolist() == np.ones((4, 2)).tolist()
    assert loaded.stats["bn"]["mean"].tolist() == [5, 5, 5]
    assert not np.shares_memory(np.asarray(loaded.stats["bn"]["mean"]), LIKE.stats["bn"]["mean"])
    with pytest.raises(StateDictMismatchError, match="4 missing"):  # nothing to keep
        from_torch_state_dict(given_dict, like=abstract(LIKE), strict=False)


def test_unexpected_keys_alone_come_with_the_way_out():
    with pytest.raises(StateDictMismatchError, match=r"1 unexpected: x; strict=False ignores unexpected keys$"):
        from_torch_state_dict(to_torch_state_dict(LIKE) | {"x": np.ones(1)}, like=LIKE)


def test_dtype_like_rounds_floats_and_nothing_else():
    like = Variables({"a": np.zeros(2, np.float16), "b": np.zeros(1, np.int32)}, {})
    loaded = from_torch_state_dict({"a": np.array([1 + 2**-12, 2.0]), "b": np.asarray([7])}, like=like, dtype="like")
    assert loaded.params["a"].dtype == jnp.float16
    assert loaded.params["a"].tolist() == [1, 2]
    assert loaded.params["b"].dtype == jnp.int32
    for wrong in (
        {"a": np.ones(2, np.int32), "b": np.ones(1, np.int32)},
        {"a": np.array([1e9, 1]), "b": np.ones(1, np.int32)},
    ):
        with pytest.raises(StateDictMismatchError, match=r"can't become float16|too large for float16"):
            from_torch_state_dict(wrong, like=like, dtype="like")


def classifier(classes, dtype=np.float32, *, name="fc", fill=1.0):
    """What a state dict holds of it, for 4 features."""
    return {f"{name}.weight": np.full((classes, 4), fill, dtype), f"{name}.bias": np.full(classes, fill, dtype)}


def body():
    """All of a state dict of `LIKE` but the classifier."""
    return {key: array for key, array in to_torch_state_dict(LIKE).items() if not key.startswith("fc.")}


@pytest.mark.parametrize(
    "head", [{}, classifier(2), classifier(7), classifier(2, np.float16), classifier(3, name="head")]
)
def test_dropping_the_head_keeps_the_networks_own_whatever_the_files_is(head):
    own = LIKE._replace(
        params=LIKE.params | {"fc": {"kernel": np.full((4, 2), 3, np.float32), "bias": np.ones(2, np.float32)}}
    )
    loaded = from_torch_state_dict(body() | head, like=own, head="drop")
    assert_same_variables(loaded, own)
    assert not np.shares_memory(np.asarray(loaded.params["fc"]["kernel"]), own.params["fc"]["kernel"])


def test_dropping_the_head_is_no_looser_about_anything_else():
    others = {key: array for key, array in body().items() if key != "bn.weight"} | {"x": np.ones(1)}
    with pytest.raises(StateDictMismatchError, match=r"the network; 1 missing: bn\.weight; 1 unexpected: x$"):
        from_torch_state_dict(others | classifier(7), like=LIKE, head="drop")
    with pytest.raises(
        StateDictMismatchError, match=r"2 missing: fc\.\S+ fc\.\S+ .* give its values in like, not only"
    ):
        from_torch_state_dict(body() | classifier(2), like=abstract(LIKE), head="drop")


def test_a_network_without_a_head_drops_the_files():
    headless = Variables({"bn": LIKE.params["bn"]}, LIKE.stats)
    for name in ("fc", "head", "heads.head", "classifier"):
        loaded = from_torch_state_dict(body() | classifier(7, name=name), like=headless, head="drop")
        assert_same_variables(loaded, headless)
    with pytest.raises(
        ConfigurationError, match=r'head="drop": neither .* has a classifier by a name that tells \(fc, '
    ):
        from_torch_state_dict(body() | classifier(7, name="10"), like=headless, head="drop")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (classifier(7), "keeps the network's own"),
        ({}, "keeps the network's own"),
        (classifier(2) | classifier(2, name="head"), 'head="drop" leaves the file\'s classifier out$'),
    ],
)
def test_where_only_the_head_differs_the_way_out_is_said(head, words):
    with pytest.raises(StateDictMismatchError, match='head="drop" leaves the file') as caught:
        from_torch_state_dict(body() | head, like=LIKE)
    assert re.search(words, str(caught.value))
    with pytest.raises(StateDictMismatchError, match=r"2 wrong shape") as caught:
        from_torch_state_dict(body() | classifier(7) | {"x": np.ones(1)}, like=LIKE)
    assert "head=" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"kernel": 1}, r"expected Variables\(params, stats\), got dict"),
        (Variables({"a": {"b": np.ones(1)}}, {"a": {"b": np.ones(1)}}), "in params and in stats: a/b"),
        (Variables({"a": {"kernel": np.ones((1, 1)), "scale": np.ones(1)}}, {}), r"would both be a\.weight"),
    ],
)
def test_what_is_no_networks_variables_is_refused(variables, words):
    with pytest.raises(StateDictMismatchError, match=words):
        to_torch_state_dict(variables)


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ConfigurationError, match="use None"):
        from_torch_state_dict({}, like=LIKE, dtype="float32")
    with pytest.raises(ConfigurationError, match='use "keep" or "drop"'):
        from_torch_state_dict({}, like=LIKE, head="resize")
    with pytest.raises(ConfigurationError, match="use one of resnet50, "):
        from_torch_state_dict({}, like=LIKE, arch="resnet5")
