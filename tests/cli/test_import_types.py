"""`byol-jax import --dtype`: files in other types than float32 are converted, kept, or refused with advice."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

import byol_jax
import interop
from byol_jax import make_learner, nets
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from interop.weights.architectures import expected_shapes
from interop.weights.transformers import torchvision_key
from tests.cli.learner_modules import IMPORT, arrays, module_of, small_cnn, stripped
from tests.interop.plain_learners import randomised
from tests.interop.weight_samples import assert_identical

TYPES = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16, torch.float64: np.float64}
WEIGHTS = randomised(small_cnn(), 0).state_dict()
OUT = ["--out", "o.safetensors", "--overwrite", *IMPORT]


def converted(state_dict, dtype):
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", TYPES)
def test_a_network_of_another_type(dtype, call, there):
    given = converted(WEIGHTS, dtype)
    torch.save(given, "x.pth")
    answer = call("import", "x.pth", *OUT)
    assert (answer.code, answer.out) == (2, "")
    assert f"wrong dtype: 0.weight (given {np.dtype(TYPES[dtype])}, expected float32)" in answer.complaint
    assert "(byol-jax import: --dtype float32)" in answer.complaint
    assert not (there / "o.safetensors").exists()
    assert call("import", "x.pth", *OUT, "--dtype", "float32").code == 0
    wanted = {name: tensor.numpy() for name, tensor in converted(given, torch.float32).items()}
    assert_identical(interop.load_state_dict("o.safetensors"), wanted, ordered=False)
    assert call("import", "x.pth", *OUT, "--dtype", "keep").code == 0
    kept = interop.load_state_dict("o.safetensors")
    assert_identical(kept, interop.load_state_dict("x.pth"), ordered=False)
    assert kept["0.weight"].dtype == TYPES[dtype]


def vit_s16(library):
    """ViT-S/16 in bfloat16 by the names of timm, or of torchvision before `mlp.0`."""
    shapes = expected_shapes("vit_small_patch16_224", num_classes=3)
    zeros = {name: np.zeros(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()}
    if library == "timm":
        return zeros
    old = {"mlp.0": "mlp.linear_1", "mlp.3": "mlp.linear_2"}
    return {re.sub(r"mlp\.[03]", lambda found: old[found[0]], torchvision_key(name)): a for name, a in zeros.items()}


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "torchvision, older"])
def test_a_network_of_another_type_and_other_names(library, call, there):
    given = vit_s16(library)
    interop.save_state_dict("x.safetensors", given)
    told = ["--network", "vit_s16"] if library != "timm" else []  # torchvision has no ViT-S, and its names tell none
    answer = call("import", "x.safetensors", *OUT[:3], "--dtype", "keep", *told)
    assert (answer.code, answer.out) == (0, f"{len(given)} tensors of vit_s16: o.safetensors\n")
    kept = interop.load_state_dict("o.safetensors")
    assert {array.dtype for array in kept.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert set(kept) == set(map(torchvision_key, given))


def test_a_type_that_is_not_known_is_not_converted(call, there, monkeypatch):
    torch.save(WEIGHTS, "x.pth")
    monkeypatch.setattr(interop, "encoder_state_dict", lambda *given: {"other.weight": np.zeros(3, np.float32)})
    answer = call("import", "x.pth", *OUT, "--dtype", "keep")
    assert (answer.code, answer.out) == (2, "")
    assert "--dtype keep: its names aren't those of" in answer.complaint
    assert not (there / "o.safetensors").exists()


def test_values_that_are_too_large_are_named(call, there):
    torch.save(WEIGHTS | {"0.weight": torch.full_like(WEIGHTS["0.weight"], 1e300, dtype=torch.float64)}, "x.pth")
    answer = call("import", "x.pth", *OUT, "--dtype", "float32")
    assert (answer.code, "0.weight (values too large for float32)" in answer.complaint) == (2, True)


def test_a_learner_of_another_type(call, there):
    learner = module_of("byol-pytorch").state_dict()
    torch.save(converted(learner, torch.bfloat16), "x.pth")
    whole = [*OUT, "--layout", "byol-pytorch"]
    answer = call("import", "x.pth", *whole)
    assert (answer.code, "--layout NAME --dtype float32" in answer.complaint) == (2, True)
    answer = call("import", "x.pth", *whole, "--dtype", "keep")
    assert (answer.code, "--dtype keep with --layout" in answer.complaint) == (2, True)
    assert call("import", "x.pth", *whole, "--dtype", "float32").code == 0
    wanted = {name: t.numpy() for name, t in converted(converted(learner, torch.bfloat16), torch.float32).items()}
    assert_identical(interop.load_state_dict("o.safetensors"), wanted, ordered=False)
    assert call("import", "x.pth", *OUT, "--dtype", "float32").code == 0
    assert_identical(interop.load_state_dict("o.safetensors"), stripped(wanted, "online_encoder.net."), ordered=False)


def test_a_learners_values_that_are_too_large_are_named(there):
    learner = make_learner(nets.small_cnn(), image_size=16, projection_size=16, projection_hidden_size=24)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    given = arrays(module_of("byol-pytorch"))
    given["online_predictor.0.bias"] = np.full(24, 1e300)
    with pytest.raises(StateDictMismatchError, match=r"online_predictor\.0\.bias \(values too large for float32\)"):
        interop.open_weights(given).learner(nets.small_cnn(), like=state, dtype="like")


def test_the_advice_about_a_learner_that_is_not_read_works(call, there):
    """mmselfsup's names: both errors name what reads them, and that does."""
    names = {f"{network}_net.0.{name}": tensor for network in ("online", "target") for name, tensor in WEIGHTS.items()}
    torch.save({"state_dict": names}, "epoch_200.pth")
    encoder = nets.small_cnn()
    learner = make_learner(encoder, image_size=16, projection_size=8, projection_hidden_size=8)
    state = learner.init(jax.random.key(0))
    like = byol_jax.encoder_variables(state)
    errors = []
    state_dict = interop.load_state_dict("epoch_200.pth")
    for error, load in (
        (CheckpointFormatError, lambda: interop.load_byol_checkpoint("epoch_200.pth", like=state)),
        (StateDictMismatchError, lambda: interop.from_torch_state_dict(state_dict, like=like)),
    ):
        with pytest.raises(error, match="names tell: BYOL learner, mmselfsup") as caught:
            load()
        errors.append(str(caught.value))
    assert all("interop.open_weights(FILE).variables(encoder, like=variables)" in error for error in errors)
    assert all("byol-jax import FILE" in error for error in errors)
    variables = interop.open_weights("epoch_200.pth").variables(encoder, like=like)
    wanted = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}
    assert_identical(interop.encoder_state_dict(encoder, variables), wanted, ordered=False)
    assert call("import", "epoch_200.pth", *OUT).code == 0
    assert_identical(interop.load_state_dict("o.safetensors"), wanted, ordered=False)
