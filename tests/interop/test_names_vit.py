"""Vision transformers' names: torchvision's old and new, timm's, and one packed tensor for three leaves."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_samples import arrays, assert_identical

import interop
from byol_jax import Variables, make_learner, nets
from byol_jax.errors import StateDictMismatchError
from byol_jax.tree import flatten, unflatten
from interop import from_torch_state_dict, to_torch_state_dict
from interop.weights.architectures import expected_shapes, recognise
from interop.weights.packing import pack
from interop.weights.transformers import TRANSFORMERS, timm_key, torchvision_key
from tests.parity.trajectory import blank

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models")
timm = pytest.importorskip("timm")

SMALL = {"width": 6, "num_heads": 2, "patch_size": 4, "mlp_width": 5, "num_classes": 3}
LAYER = "encoder.layers.encoder_layer_"
ATTENTION = f"{LAYER}0.self_attention"


@cache
def abstract(depth=1, size=8, dtype="float32", **options):
    encoder = nets.vit(depth, **SMALL | options)
    shapes = jax.eval_shape(partial(encoder.init, image_shape=(size, size, 3)), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype)), shapes)


def variables_of(shapes, seed=0):
    """Random bits of any type; NaN payloads among them."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        count = int(np.prod(leaf.shape))
        return np.frombuffer(random.bytes(count * leaf.dtype.itemsize), leaf.dtype).reshape(leaf.shape)

    return jax.tree.map(draw, shapes)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert_identical(*(dict(enumerate(jax.tree.leaves(variables))) for variables in (one, other)))


@pytest.mark.parametrize(
    ("dtype", "x64"),
    [
        ("float32", False),
        ("float16", False),
        ("bfloat16", False),
        ("float64", False),
        ("float64", True),
        ("int64", True),
    ],
)
@pytest.mark.parametrize("arch", ["vit_b_16", "vit_base_patch16_224"])
def test_a_round_trip_is_the_identity(dtype, x64, arch):
    """float64 stays NumPy's where JAX has no such type."""
    shapes = abstract(12, dtype=dtype)
    variables = variables_of(shapes)
    state_dict = to_torch_state_dict(variables, arch=arch)
    with jax.enable_x64(x64):
        loaded = from_torch_state_dict(state_dict, like=shapes, arch=arch)
        assert_same(loaded, variables)
        assert all(isinstance(leaf, jax.Array) == (x64 or "64" not in dtype) for leaf in jax.tree.leaves(loaded))
    assert_identical(to_torch_state_dict(loaded, arch=arch), state_dict)
    assert list(state_dict) == list(expected_shapes(arch))


@st.composite
def attentions(draw):
    """Query, key and value of any width, type and bits; an empty one included."""
    width, dtypes = draw(st.integers(0, 4)), (draw(st.sampled_from(["float32", "float16", "bfloat16", "float64"])),)
    leaves = {
        f"x/self_attention/{part}/{leaf}": draw(arrays(dtypes, shape))
        for part in ("query", "key", "value")
        for leaf, shape in (("kernel", (width, width)), ("bias", (width,)))
    }
    return Variables(unflatten(leaves), {})


@settings(deadline=None)
@given(attentions())
def test_query_key_and_value_are_rows_of_one_tensor(variables):
    state_dict = to_torch_state_dict(variables)
    assert set(state_dict) == {"x.self_attention.in_proj_weight", "x.self_attention.in_proj_bias"}
    attention = variables.params["x"]["self_attention"]
    rows = [np.asarray(attention[part]["kernel"]).T for part in ("query", "key", "value")]
    assert state_dict["x.self_attention.in_proj_weight"].tobytes() == np.concatenate(rows).tobytes()
    assert_same(from_torch_state_dict(state_dict, like=variables), variables)
    assert pack(state_dict) == state_dict


def test_what_differs_in_a_packed_tensor_is_said_once():
    state_dict = to_torch_state_dict(variables_of(abstract()))
    bias = state_dict.pop(f"{ATTENTION}.in_proj_bias")
    bias = np.nan_to_num(bias, nan=0, posinf=0, neginf=0).clip(-1, 1)
    for key, wrong in (
        ("missing", {}),
        ("wrong shape", {f"{ATTENTION}.in_proj_bias": bias[:-1]}),
        ("wrong shape", {f"{ATTENTION}.in_proj_bias": bias[0]}),
        ("wrong dtype", {f"{ATTENTION}.in_proj_bias": bias.astype(np.float16)}),
    ):
        with (
            np.errstate(all="ignore"),
            pytest.raises(StateDictMismatchError, match=rf"; 1 {key}: \S+in_proj_bias") as caught,
        ):
            from_torch_state_dict(state_dict | wrong, like=abstract())
        assert "[" not in str(caught.value).partition("given")[0]
    with pytest.raises(StateDictMismatchError, match=r"given \[17\], expected \[18\]"):
        from_torch_state_dict(state_dict | {f"{ATTENTION}.in_proj_bias": bias[:-1]}, like=abstract())


def test_positions_of_another_image_size_come_with_the_way_out():
    state_dict = to_torch_state_dict(variables_of(abstract()))
    with pytest.raises(
        StateDictMismatchError, match=r"\(given \[1, 5, 6\], .* 17, 6\]\); positions .* nets\.resize_positions"
    ):
        from_torch_state_dict(state_dict, like=abstract(size=16))


def test_older_torchvision_names_are_read():
    variables = variables_of(abstract(2))
    state_dict = to_torch_state_dict(variables)
    old = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): a for key, a in state_dict.items()}
    assert len(set(old) - set(state_dict)) == 8
    assert_same(from_torch_state_dict(old, like=abstract(2)), variables)
    both = old | {f"{LAYER}0.mlp.0.bias": state_dict[f"{LAYER}0.mlp.0.bias"]}
    with pytest.raises(StateDictMismatchError, match=r"linear_1\.bias and \S+mlp\.0\.bias are both"):
        from_torch_state_dict(both, like=abstract(2))
    twelve = to_torch_state_dict(variables_of(abstract(12)))
    twelve = {key.replace("mlp.0", "mlp.linear_1"): array for key, array in twelve.items()}
    assert from_torch_state_dict(twelve, like=abstract(12), arch="vit_b_16").stats == {}


def test_an_architectures_names_are_asked_for():
    state_dict = to_torch_state_dict(variables_of(abstract(12)), arch="vit_base_patch16_224")
    with pytest.raises(StateDictMismatchError, match=r"aren't the keys of vit_b_16; 150 missing|152 missing"):
        from_torch_state_dict(state_dict, like=abstract(12), arch="vit_b_16")
    with pytest.raises(StateDictMismatchError, match=r"aren't the keys of vit_large_patch16_224; 144 missing"):
        from_torch_state_dict(state_dict, like=abstract(12), arch="vit_large_patch16_224")


def test_the_two_libraries_names_are_each_others_inverse():
    for name, network in TRANSFORMERS.items():
        for key in expected_shapes(name):
            there, back = (
                (timm_key, torchvision_key) if network.library == "torchvision" else (torchvision_key, timm_key)
            )
            assert there(key) != key
            assert back(there(key)) == key
    for key in (
        "layer1.0.conv1.weight",
        "blocks.0.attn.q_norm.weight",
        "blocks.0.ls1.gamma",
        "encoder.layers.0.ln.bias",
    ):
        assert torchvision_key(key) == timm_key(key) == key


def test_a_traced_timm_network_keeps_its_own_names():
    keys = ["cls_token", "blocks.0.attn.qkv.weight", "blocks.0.norm1.bias", "head.weight"]
    params = unflatten({key: np.ones(2, np.float32) for key in keys}, separator=".")
    state_dict = to_torch_state_dict(Variables(params, {}))
    assert sorted(state_dict) == sorted(keys)
    assert_same(from_torch_state_dict(state_dict, like=Variables(params, {})), Variables(params, {}))


USUAL = ("vit_b_16", "vit_base_patch16_224")


@pytest.mark.parametrize(
    "name", [*USUAL, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted({*TRANSFORMERS} - {*USUAL}))]
)
def test_the_tables_are_the_librarys(name):
    library = TRANSFORMERS[name].library
    with torch.device("meta"):
        is_timm = library == "timm"
        module = timm.create_model(name, num_classes=1000) if is_timm else models.get_model(name, weights=None)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert list(expected_shapes(name).items()) == list(shapes.items())
    assert recognise(shapes) == f"{library} {name}"
    headless = {key: shape for key, shape in shapes.items() if "head" not in key}
    assert recognise(headless) == f"{library} {name} without {'head' if is_timm else 'heads.head'}"


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        (expected_shapes("vit_b_16") | {"encoder.pos_embedding": (1, 577, 768)}, "torchvision vit_b_16 at 384 px"),
        (expected_shapes("vit_b_16", channels=1, num_classes=10), "torchvision vit_b_16"),
        (expected_shapes("vit_b_16") | {"encoder.ln.bias": (3,)}, "vision transformer, torchvision"),
        (expected_shapes("vit_base_patch16_224") | {"reg_token": (1, 4, 768)}, "vision transformer, timm"),
        (expected_shapes("vit_base_patch16_224") | {"pos_embed": ()}, "vision transformer, timm"),
    ],
)
def test_variations_are_recognised_for_what_they_are(shapes, kind):
    assert recognise(shapes) == kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "make", "arch"),
    [
        pytest.param(nets.vit_b16, models.vit_b_16, "vit_b_16", marks=pytest.mark.long),
        (nets.vit_s16, partial(timm.create_model, "vit_small_patch16_224"), "vit_small_patch16_224"),
    ],
)
def test_a_librarys_whole_network_goes_to_jax_and_back_bit_for_bit(encoder, make, arch, tmp_path):
    module = make()
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.normal_()
    original = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    like = jax.eval_shape(partial(encoder().init, image_shape=(224, 224, 3)), jax.random.key(0))
    variables = from_torch_state_dict(module.state_dict(), like=like, arch=arch)
    state_dict = to_torch_state_dict(variables, arch=arch)
    assert_identical(state_dict, original)
    interop.save_state_dict(tmp_path / "net.pt", state_dict)
    fresh = make()
    fresh.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=True)
    assert_identical({name: tensor.numpy() for name, tensor in fresh.state_dict().items()}, original)


def test_a_torch_module_takes_native_variables_back():
    module = models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=6, mlp_dim=5, num_classes=3
    )
    variables = jax.tree.map(lambda leaf: np.random.default_rng(0).random(leaf.shape, np.float32), abstract())
    written = interop.update_torch_module(module, variables)
    assert written == list(module.state_dict())
    expected = to_torch_state_dict(variables)
    assert_identical({name: tensor.numpy() for name, tensor in module.state_dict().items()}, expected, ordered=False)
    attention = variables.params["encoder"]["layers"]["encoder_layer_0"]["self_attention"]
    attention["query"]["bias"] = np.ones(7, np.float32)
    with pytest.raises(StateDictMismatchError, match=r"; 1 wrong shape: \S+in_proj_bias \(given \[19\]"):
        interop.update_torch_module(module, variables)


@pytest.mark.parametrize(
    "layout", ["byol_pytorch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lightly", "solo_learn"))]
)
def test_whole_learners_around_one_are_written_and_read(layout, tmp_path):
    learner = make_learner(nets.vit(1, **SMALL), image_size=8, projection_size=4, projection_hidden_size=8)
    state = blank(learner)
    random = np.random.default_rng(0)
    online, target = jax.tree.map(
        lambda leaf: abs(random.normal(size=leaf.shape)).astype(leaf.dtype), (state.online, state.target)
    )  # as variances are
    state = state.replace(online=online, target=target)
    for network in (online, target):  # lightly's heads have none
        network.params["projector"]["0"]["bias"] = np.zeros(8, np.float32)
    online.params["predictor"]["0"]["bias"] = np.zeros(8, np.float32)
    interop.save_byol_checkpoint(tmp_path / "learner.safetensors", state, layout=layout)
    assert any(
        key.endswith(f"{ATTENTION}.in_proj_weight") for key in interop.load_state_dict(tmp_path / "learner.safetensors")
    )
    loaded = interop.load_byol_checkpoint(tmp_path / "learner.safetensors", like=state)
    assert_same((loaded.online, loaded.target), (online, target))


def test_every_leaf_of_a_native_network_has_torchvisions_path():
    paths = flatten(abstract().params)
    assert "encoder/layers/encoder_layer_0/self_attention/query/kernel" in paths
    assert {path.rpartition("/")[2] for path in paths} == {"kernel", "bias", "scale", "class_token", "pos_embedding"}
