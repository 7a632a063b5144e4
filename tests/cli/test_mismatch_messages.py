"""Weights for another network than the one named: one line that can be read, with the way out in it."""

import jax
import numpy as np
import pytest
import torchvision

import interop
from byol_jax import nets
from byol_jax.errors import ConfigurationError, StateDictMismatchError
from interop.inspect.anatomy import architecture
from interop.weights.architectures import expected_shapes, recognise
from interop.weights.mismatch import Mismatch

LONGEST = 2000


def zeros(shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if "tracked" not in name} | {
        name: np.zeros((), np.int64) for name in shapes if "tracked" in name
    }


FILES = {
    "resnet18": lambda: zeros(expected_shapes("resnet18")),
    "resnet50": lambda: zeros(expected_shapes("resnet50", num_classes=None)),
    "small images": lambda: zeros(expected_shapes("resnet18") | {"conv1.weight": (64, 3, 3, 3)}),
    "other blocks": lambda: {name: a for name, a in zeros(expected_shapes("resnet18")).items() if "r4.1" not in name},
    "parts": lambda: {f"{part}.{n}": a for part in "qk" for n, a in zeros(expected_shapes("resnet18")).items()},
    "unknown": lambda: {
        name: tensor.numpy()
        for name, tensor in torchvision.models.mobilenet_v3_small(weights=None).state_dict().items()
    },
}
GUESS = "names tell no network that is known here, and resnet18 is only a guess: give --network NAME"
CASES = [
    ("resnet18", "--network resnet50", ["looks like resnet18 (--network resnet18), not resnet50;"]),
    ("resnet50", "--network resnet18", ["looks like resnet50 (--network resnet50), not resnet18;"]),
    ("resnet50", "--network small_cnn", ["looks like resnet50 (--network resnet50), not small_cnn;"]),
    ("resnet18", "--network vit_s16", ["looks like resnet18 (--network resnet18), not vision transformer"]),
    ("small images", "--network resnet18", ["looks like resnet18, 3x3 stem (--network resnet18-cifar), not resnet18;"]),
    ("other blocks", "--network resnet18", ["looks like ResNet with 2 + 2 + 2 + 1 basic blocks", "12 missing"]),
    ("parts", "", ["those below k, q are: prefix='k' (--prefix k) takes them"]),
    ("unknown", "", [GUESS, "--network torchvision:NAME --init-from FILE", "120 missing", "and 232 more"]),
    ("unknown", "--network resnet34", ["missing: ", "244 unexpected: features.", "and 232 more"]),
]


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("file", "options", "words"), CASES)
def test_import_says_what_to_do_in_a_line_that_can_be_read(file, options, words, call, there):
    interop.save_state_dict("x.safetensors", FILES[file]())
    answer = call("import", "x.safetensors", "--out", "o.safetensors", *options.split())
    assert (answer.code, answer.out, len(answer.complaint) < LONGEST) == (2, "", True)
    for part in words:
        assert part in answer.complaint
    assert (GUESS in answer.complaint) == (GUESS in words)
    assert answer.complaint.startswith("byol-jax import: x.safetensors: ")
    assert not (there / "o.safetensors").exists()


def test_a_network_that_differs_in_nothing_but_values_is_not_named_again():
    weights = interop.open_weights(FILES["resnet18"]() | {"conv1.weight": np.zeros((64, 3, 7, 7), np.float16)})
    encoder = nets.resnet18(num_classes=1000)
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (32, 32, 3)))
    with pytest.raises(StateDictMismatchError, match=r"^the state dict doesn't fit .* wrong dtype"):
        weights.variables(encoder, like=like, dtype=None)


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shapes", "dtypes", "values"])
def test_a_list_ends_after_twelve(kind):
    names = [f"layer{number}.weight" for number in range(312)]
    with pytest.raises(StateDictMismatchError) as refusal:
        Mismatch(**{kind: names}).raise_if_any("it doesn't fit", hint="do this")
    message = str(refusal.value)
    assert (message.count("layer"), "312 " in message) == (12, True)
    assert message.endswith("layer11.weight and 300 more; do this")


@pytest.mark.parametrize("which", ["teacher", "Online", ""])
def test_a_network_of_another_name_is_a_wrong_option(which):
    weights = interop.open_weights(FILES["resnet18"]())
    with pytest.raises(ConfigurationError, match=f"which '{which}' isn't known: use online or target"):
        weights.network(which=which)
    encoder = nets.resnet18()
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (32, 32, 3)))
    with pytest.raises(ConfigurationError, match="use online or target"):
        weights.variables(encoder, like=like, which=which)
    with pytest.raises(StateDictMismatchError, match="holds no target network"):
        weights.variables(encoder, like=like, which="target")


@pytest.mark.parametrize("classes", [10, 3, None])
@pytest.mark.parametrize(("size", "channels"), [(16, 3), (28, 1), (32, 3)])
def test_our_own_small_network_is_known(size, channels, classes, call, there):
    """`import` needs neither `--network` nor `--image-size` for what `export` or a run wrote."""
    encoder = nets.small_cnn(num_classes=classes)
    variables = encoder.init(jax.random.key(0), (size, size, channels))
    own = interop.encoder_state_dict(encoder, variables)
    shapes = {name: array.shape for name, array in own.items()}
    assert recognise(shapes) == architecture(shapes).name == "small_cnn"
    assert recognise({name: shape for name, shape in shapes.items() if "tracked" not in name}) == "small_cnn"
    assert architecture(shapes).classes == classes
    for other in ({"12.weight": (3,)}, {"3.weight": (64, 32, 5, 5)}, {"10.bias": (1,), "11.bias": (1,)}):
        assert recognise(shapes | other) == "unknown"
    interop.save_state_dict("x.safetensors", own)
    answer = call("import", "x.safetensors", "--out", "o.safetensors", "--channels", channels)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"{len(own)} tensors of small_cnn")


@pytest.mark.parametrize("given", ["run", "run/checkpoints/00000001", "hf", "empty"])
def test_a_folder_names_the_file_that_is_meant(given, call, there):
    for folder in ("run/checkpoints/00000001", "run/exported", "hf", "empty"):
        (there / folder).mkdir(parents=True)
    (there / "run/config.json").write_text("{}")
    for name in ("run/exported/encoder", "hf/model"):
        interop.save_state_dict(f"{name}.safetensors", {"a": np.ones(1)})
    np.save("a.npy", np.zeros((8, 16, 16, 3), np.uint8))
    for words in (
        ["import", given, "--out", "o.safetensors"],
        ["convert", given, "o.safetensors"],
        ["train", "a.npy", "--out", "new", "--steps", "1", "--init-from", given],
    ):
        answer = call(*words)
        wanted = {"hf": "hf/model.safetensors", "empty": "one *.safetensors.index.json"}
        assert (answer.code, answer.out) == (2, "")
        assert f"'{given}' is a folder, a file of weights is wanted" in answer.complaint
        assert wanted.get(given, "run/exported/encoder.safetensors") in answer.complaint
