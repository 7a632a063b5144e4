"""Native vision transformers against torchvision's and timm's: outputs, gradients, hooks, names and shapes."""

from functools import cache, partial

import jax
import numpy as np
import pytest
import timm
import torch
from torchvision import models

from byol_jax import Variables, nets
from byol_jax.tree import flatten
from interop import from_torch_state_dict, to_torch_state_dict
from tests.parity.torch_nets import assert_leaves_close, channels_first

SIZES = {"num_classes": 7, "num_heads": 4}
ENCODER = nets.vit(2, width=32, patch_size=8, mlp_width=48, **SIZES)
THEIRS = {"depth": 2, "embed_dim": 32, "patch_size": 8, "img_size": 32, "mlp_ratio": 1.5}
OURS_ALONE, UNCALLED = "pooled", "self_attention.out_proj"


def torchvisions():
    return models.VisionTransformer(image_size=32, patch_size=8, num_layers=2, hidden_dim=32, mlp_dim=48, **SIZES)


def timms():
    return timm.models.VisionTransformer(**THEIRS, **SIZES)


@cache
def images(dtype="float64"):
    return np.random.default_rng(1).standard_normal((4, 32, 32, 3)).astype(dtype)


def like(encoder=ENCODER, size=32, dtype="float32"):
    shapes = jax.eval_shape(partial(encoder.init, image_shape=(size, size, 3)), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def randomised(module, dtype):
    """No weight 0 or 1: the classifier starts as zeros, and layer norms as nothing at all."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.to(getattr(torch, dtype))


def check_parity(library, dtype, tolerance):
    """Evaluation, training, and every gradient under torch's names, in one compilation."""
    module, x = randomised({"torchvision": torchvisions, "timm": timms}[library](), dtype), images(dtype)
    variables = from_torch_state_dict(module.state_dict(), like=like(dtype=dtype))
    weights = np.random.default_rng(2).standard_normal((len(x), 7)).astype(dtype)

    @jax.jit
    def both(variables, x):
        def loss(params):
            output, stats = ENCODER.apply(variables._replace(params=params), x, train=True, hidden_layer=-1)
            return (output * weights).sum(), (output, stats)

        evaluated, _ = ENCODER.apply(variables, x, train=False, hidden_layer=-1)
        return evaluated, *jax.value_and_grad(loss, has_aux=True)(variables.params)

    evaluated, (_, (trained, stats)), gradients = both(variables, x)
    assert stats == {}
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(channels_first(x))).numpy()
    output = module.train()(torch.from_numpy(channels_first(x)))
    (output * torch.from_numpy(weights)).sum().backward()
    theirs = {"evaluated": expected, "trained": output.detach().numpy()}
    assert_leaves_close({"evaluated": evaluated, "trained": trained}, theirs, tolerance)
    mine = to_torch_state_dict(Variables(gradients, {}))
    mine = {timm_name(name) if library == "timm" else name: array for name, array in mine.items()}
    assert_leaves_close(mine, {name: one.grad.numpy() for name, one in module.named_parameters()}, tolerance)


def timm_name(name):
    """A second reading of the table, by plain replacement."""
    for ours, theirs in (
        ("encoder.layers.encoder_layer_", "blocks."),
        ("self_attention.in_proj_", "attn.qkv."),
        ("self_attention.out_proj", "attn.proj"),
        ("encoder.pos_embedding", "pos_embed"),
        ("class_token", "cls_token"),
        ("conv_proj", "patch_embed.proj"),
        ("encoder.ln.", "norm."),
        ("ln_", "norm"),
        ("mlp.0", "mlp.fc1"),
        ("mlp.3", "mlp.fc2"),
        ("heads.head", "head"),
    ):
        name = name.replace(ours, theirs)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_forward_and_backward_in_float64(library):
    with jax.enable_x64(True):
        check_parity(library, "float64", 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_forward_and_backward_in_float32(library):
    check_parity(library, "float32", 2e-5)


def hooked(module, x):
    """Each module's output as a row an image; attention's is the first of two."""
    kept = {}

    def keep(name):
        return lambda _, __, output: kept.__setitem__(name, output[0] if isinstance(output, tuple) else output)

    for name, child in module.named_modules():
        child.register_forward_hook(keep(name))
    with torch.no_grad():
        module(torch.from_numpy(channels_first(x)))
    return {name: value.reshape(len(x), -1).numpy() for name, value in kept.items() if name}


@pytest.mark.slow
def test_every_hidden_layer_is_what_a_hook_holds():
    module = randomised(torchvisions().eval(), "float32")
    expected, x = hooked(module, images("float32")), images("float32")
    variables = from_torch_state_dict(module.state_dict(), like=like())
    assert {*ENCODER.hidden_layers()} - {OURS_ALONE} == set(expected)
    run = partial(ENCODER.apply, variables, train=False)
    got = jax.jit(lambda x: {name: run(x, hidden_layer=name)[0] for name in ENCODER.hidden_layers()})(x)
    pooled = got.pop(OURS_ALONE)
    assert_leaves_close(got, expected, 1e-4)
    np.testing.assert_array_equal(pooled, got["encoder"][:, :32])


@pytest.mark.parametrize(
    ("name", "encoder", "size"),
    [
        ("vit_b_16", nets.vit_b16(), 224),
        ("vit_b_16", nets.vit_b16(num_classes=10), 384),
        ("vit_b_32", nets.vit_b32(), 224),
        ("vit_l_16", nets.vit_l16(), 224),
        ("vit_small_patch16_224", nets.vit_s16(), 224),
    ],
)
def test_names_and_shapes_are_the_librarys(name, encoder, size):
    classes = like(encoder, size).params["heads"]["head"]["bias"].shape[0]
    with torch.device("meta"):
        if "patch" in name:
            module = timm.create_model(name)
        else:
            module = models.get_model(name, weights=None, image_size=size, num_classes=classes)
    if "patch" not in name:
        layers = [layer for layer in encoder.hidden_layers() if layer != OURS_ALONE]
        assert layers == [layer for layer, _ in module.named_modules() if layer and not layer.endswith(UNCALLED)]
    mine = {}
    for path, leaf in flatten(like(encoder, size).params).items():
        shape = (*leaf.shape[:-3:-1], *leaf.shape[:-2]) if path.endswith("kernel") else leaf.shape
        key = path.replace("/", ".").replace("kernel", "weight").replace("scale", "weight")
        for part in ("query", "key", "value"):
            if f".{part}." in key:
                key, shape = key.replace(f"{part}.", "in_proj_"), (3 * shape[0], *shape[1:])
        mine[timm_name(key) if "patch" in name else key] = shape
    assert mine == {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize("size", [(16, 56), (32, 32)])
def test_positions_for_another_size_are_timms(size):
    positions = np.random.default_rng(0).standard_normal((1, 17, 32)).astype(np.float32)
    variables = like()._replace(
        params={"conv_proj": {"kernel": np.zeros((8, 8, 3, 32))}, "encoder": {"pos_embedding": positions}}
    )
    resized = nets.resize_positions(variables, size).params["encoder"]["pos_embedding"]
    grid = [size[0] // 8, size[1] // 8]
    expected = timm.layers.resample_abs_pos_embed(torch.from_numpy(positions), new_size=grid).numpy()
    assert resized.shape == (1, 1 + grid[0] * grid[1], 32)
    np.testing.assert_allclose(resized, expected, rtol=0, atol=2e-6)
    assert (resized is positions) == (size == (32, 32))
