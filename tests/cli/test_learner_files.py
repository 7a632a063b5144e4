"""Whole learners on the command line: other libraries' files in, ours out, and wrong files one line and no trace."""

import json
import re

import numpy as np
import pytest
import torch
import torchvision
from byol_pytorch import BYOL
from torch import nn

import interop
from byol_jax import ConfigurationError, checkpoint, make_learner
from byol_jax.cli.commands.export import LAYOUTS
from byol_jax.recipe import from_json, learner_arguments
from byol_jax.runs.config import encode_config
from byol_jax.runs.network import encoder_from
from interop.learners.fitting import own_arrays
from tests.cli.learner_modules import (
    CLASSES,
    HEADS,
    IMPORT,
    LEARNERS,
    ROOTS,
    SIZE,
    arrays,
    byol_pytorch,
    learner,
    module_of,
    small_cnn,
    stripped,
    write_learners,
)
from tests.interop import plain_learners
from tests.interop.deepmind_files import pickles
from tests.interop.weight_samples import assert_identical
from tests.parity.trajectory import blank


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A working directory with a file of each library's learner."""
    monkeypatch.chdir(tmp_path)
    write_learners(tmp_path)
    return tmp_path


def test_networks_of_learners_are_imported(call, there):
    """Bit for bit, the online one or the target, from every library's file."""
    for library in LEARNERS:
        for which, root in zip(("online", "target"), ROOTS[library], strict=True):
            answer = call(
                "import", f"{library}.ckpt", "--out", "o.safetensors", "--overwrite", "--which", which, *IMPORT
            )
            assert (answer.code, answer.err) == (0, "")
            assert f"of small_cnn, from {library}" in answer.out
            wanted = stripped(arrays(module_of(library)), root)
            assert_identical(interop.load_state_dict("o.safetensors"), wanted, ordered=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "library", ["byol-pytorch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lightly", "solo-learn"))]
)
def test_learners_go_from_library_to_library(call, there, library):
    """Strictly, into each library's own module; and to the same state of ours as from the first file."""
    classifier = library == "byol-pytorch"
    like = blank(learner(classifier=classifier))
    wanted = own_arrays(interop.load_byol_checkpoint(there / f"{library}.ckpt", like=like))
    for layout in LEARNERS:
        answer = call("import", f"{library}.ckpt", "--out", "x.safetensors", "--overwrite", "--layout", layout, *IMPORT)
        assert (answer.code, answer.err) == (0, "")
        assert f"learner of small_cnn as {layout} has it, from {library}" in answer.out
        got = own_arrays(interop.load_byol_checkpoint(there / "x.safetensors", like=like))
        moved = {n for n in wanted if n.endswith(("or.0.bias", "or.1.running_mean"))} if layout == "lightly" else set()
        assert_identical(*({n: a for n, a in side.items() if n not in moved} for side in (got, wanted)))
        if not classifier or layout == "byol-pytorch":
            given = {name: torch.tensor(a) for name, a in interop.load_state_dict("x.safetensors").items()}
            missing, unexpected = blank_module(layout, classifier).load_state_dict(given, strict=False)
            assert [name for name in missing if not name.startswith("classifier.")] == []
            assert unexpected == []


def blank_module(layout, classifier):
    if layout == "byol-pytorch" and not classifier:
        return BYOL(
            small_cnn(classifier=False), image_size=SIZE, hidden_layer=-1, use_simplicial_embeddings=False, **HEADS
        )
    return LEARNERS[layout]()


@pytest.mark.slow
def test_what_byol_pytorch_has_besides(call, there):
    """Its simplicial embeddings and SimSiam: heads of other forms are told by the file."""
    for layout, options in {
        "D1": {"use_simplicial_embeddings": True},
        "C-sim": {"use_momentum": False},
        "D1-sim": {"use_simplicial_embeddings": True, "use_momentum": False},
    }.items():
        module = byol_pytorch(**options)
        torch.save(module.state_dict(), "x.pt")
        answer = call("import", "x.pt", "--out", "x.safetensors", "--overwrite", "--layout", layout, *IMPORT)
        assert (answer.code, answer.err) == (0, "")
        assert_identical(interop.load_state_dict("x.safetensors"), arrays(module), ordered=False)


def test_projector_and_predictor_may_have_hidden_layers_of_two_widths(call, there):
    module = plain_learners.SoloLearn(small_cnn(classifier=False))
    module.predictor = nn.Sequential(nn.Linear(16, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 16))
    torch.save(module.state_dict(), "x.pt")
    answer = call("import", "x.pt", "--out", "x.safetensors", "--layout", "solo-learn", *IMPORT)
    assert (answer.code, answer.err) == (0, "")
    wanted = {name: array for name, array in arrays(module).items() if not name.startswith("classifier.")}
    assert_identical(interop.load_state_dict("x.safetensors"), wanted, ordered=False)


@pytest.mark.slow
def test_a_network_behind_a_prefix_and_one_that_is_told(call, there):
    """Without --network the file's names tell it; what stands in front of all names is taken off."""
    shapes = interop.weights.architectures.expected_shapes("resnet34", num_classes=None)
    random = np.random.default_rng(0)
    given = {n: random.random(s).astype(np.float32) if s else np.asarray(3) for n, s in shapes.items()}
    interop.save_state_dict("x.npz", {f"module.model.encoder.{name}": array for name, array in given.items()})
    answer = call("import", "x.npz", "--out", "o.safetensors")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "216 tensors of resnet34: o.safetensors\n"
    assert_identical(interop.load_state_dict("o.safetensors"), given, ordered=False)


@pytest.fixture
def run(there):
    """The folder of a run with one checkpoint of random numbers, and its state."""
    recipe = {"hidden_layer": -2, "moving_average_decay": 0.99, "use_momentum": True, "num_channels": 3} | HEADS
    recipe |= {"augment": "none", "optimizer": "sgd", "learning_rate": 0.001, "weight_decay": 0.0}
    recipe |= {"schedule": "constant", "warmup_steps": 0}
    network = {"name": "small_cnn", "channels": 3, "num_classes": CLASSES}
    sizes = {"image_size": SIZE, "steps": 3, "batch_size": 8, "seed": 0}
    arguments = learner_arguments(from_json(recipe, image_size=SIZE, batch_size=8, steps=3))
    one = make_learner(encoder_from(network), **arguments)
    state = interop.load_byol_checkpoint(arrays(module_of("byol-pytorch", seed=1)), like=blank(one))
    checkpoint.save(there / "run" / "checkpoints", state)
    (there / "run" / "config.json").write_bytes(encode_config({"network": network, "learner": recipe} | sizes))
    return state


def test_a_run_is_exported_as_a_whole(call, there, run):
    for layout, out in {"byol-pytorch": "x.pt", "A": "x.npz", "lightly": "x.safetensors", "solo-learn": "y.pt"}.items():
        answer = call("export", "run", "--out", out, "--layout", layout)
        assert answer.code == 0
        assert answer.err.startswith("the images that it takes: ")
        assert answer.out == f"learner of small_cnn after step 0 as {layout} has it: {out}\n"
    byol_pytorch().load_state_dict(torch.load("x.pt"), strict=True)
    assert_identical(interop.load_state_dict("x.pt"), arrays(module_of("byol-pytorch", seed=1)))
    for name in ("x.pt", "x.npz", "y.pt"):
        assert_identical(own_arrays(interop.load_byol_checkpoint(name, like=run)), own_arrays(run))


def test_every_layout_is_one_that_is_written(there):
    for layout in LAYOUTS:
        with pytest.raises(interop.StateDictMismatchError, match="expected a TrainState"):
            interop.save_byol_checkpoint("x.npz", None, layout=layout)
    with pytest.raises(ConfigurationError):
        interop.save_byol_checkpoint("x.npz", None, layout="C-simm")


def test_deepminds_pickles_are_converted_and_imported_as_arrays_are(call, there):
    (there / "x.pkl").write_bytes(pickles()["tiny18/pretrain.pkl"])
    answer = call("convert", "x.pkl", "x.npz", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out)["kind"] == "BYOL learner, DeepMind's pre-training"
    complaints = [call("import", name, "--out", "o.safetensors").complaint for name in ("x.pkl", "x.npz")]
    assert all("ResNet with 1 + 1 + 1 + 1 basic blocks" in complaint for complaint in complaints)
    answer = call("import", "x.pkl", "--out", "o.safetensors", "--network", "resnet18")
    assert answer.code == 2
    for difference in (
        "missing: layer1.1.bn1.bias",
        "layer1.0.downsample.0.weight",
        "conv1.weight (given [8, 64, 3, 3]",
    ):
        assert difference in answer.complaint
    assert not (there / "o.safetensors").exists()


def in_haiku(network, tree):
    """A torchvision ResNet's state dict under the names that `deepmind.flat_names` gives."""
    leaves = {"weight": "scale", "bias": "offset", "running_mean": "mean_ema", "running_var": "var_ema"}
    for name, array in network.items():
        module, _, leaf = name.rpartition(".")
        stage = re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"block_group_{int(m[1]) - 1}/~/block_{m[2]}/~/", module + ".")
        module = re.sub(r"(conv|bn)(\d)\.$", lambda m: f"{m[1]}_{int(m[2]) - 1}", stage).replace("bn_", "batchnorm_")
        module = {"conv_0": "initial_conv", "batchnorm_0": "initial_batchnorm"}.get(module, module)
        module = module.replace("downsample.0.", "shortcut_conv").replace("downsample.1.", "shortcut_batchnorm")
        front = f"{tree}_{'state' if leaf.startswith(('running', 'num')) else 'params'}/res_net50/~/{module}"
        if name.startswith("fc."):
            yield f"{tree}_params/classifier/{leaf[0]}", np.ascontiguousarray(array.T)
        elif array.ndim == 4:
            yield f"{front}/w", np.ascontiguousarray(array.transpose(2, 3, 1, 0))
        elif leaf == "num_batches_tracked":
            yield f"{front}/~/mean_ema/counter", array.astype(np.int32)
        elif leaf.startswith("running"):
            yield f"{front}/~/{leaves[leaf]}/average", array.reshape(1, 1, 1, -1)
        else:
            yield f"{front}/{leaves[leaf]}", array.reshape(1, 1, 1, -1)


@pytest.mark.slow
@pytest.mark.filterwarnings("default:.*padding")
def test_deepminds_network_comes_under_torchvisions_names(call, there):
    """Told by its names, bit for bit, with one line about its padding."""
    network = arrays(torchvision.models.resnet50())
    interop.save_state_dict("x.npz", dict(in_haiku(network, "online")))
    answer = call("import", "x.npz", "--out", "o.safetensors")
    assert (answer.code, answer.out) == (
        0,
        "320 tensors of resnet50, from DeepMind's pre-training: o.safetensors\n",
    )
    assert "trained with TensorFlow's padding (SAME), the network pads as torchvision's" in answer.complaint
    given = {name: torch.tensor(array) for name, array in interop.load_state_dict("o.safetensors").items()}
    torchvision.models.resnet50().load_state_dict(given, strict=True)
    assert_identical(given, network, ordered=False)


WRONG = {
    "no learner": (["import", "net.npz", "--layout", "lightly", "--network", "small_cnn"], ["holds no learner"]),
    "no target": (["import", "net.npz", "--which", "target"], ["net.npz: holds no target network"]),
    "both": (["import", "lightly.ckpt", "--which", "target", "--layout", "lightly"], ["leave one of the two"]),
    "a layout that isn't": (["import", "lightly.ckpt", "--layout", "ligtly"], ["'ligtly'", "lightly is the nearest"]),
    "another network": (
        ["import", "lightly.ckpt", "--network", "resnet18", "--layout", "lightly"],
        ["lightly.ckpt", "missing", "unexpected: online.encoder.0.weight", "more; the file's network: small_cnn"],
    ),
    "a layout of other heads": (["import", "byol-pytorch.ckpt", "--layout", "D1", *IMPORT], ["use layout='C'"]),
    "a queue": (["import", "queue.npz", "--layout", "lightly", *IMPORT], ["1 unexpected: queue"]),
    "damage": (["import", "half.ckpt"], ["half.ckpt"]),
    "pickled code": (["import", "code.pkl"], ["code.pkl", "nothing was run"]),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case == "another network" else []) for case in WRONG]
)
def test_wrong_files_are_one_line_and_leave_nothing(call, there, case):
    """Neither a file, nor a folder for it, nor anything else than the old file where it was to be replaced."""
    words, expected = WRONG[case]
    interop.save_state_dict("net.npz", arrays(small_cnn()))
    interop.save_state_dict("queue.npz", arrays(module_of("lightly")) | {"queue": np.zeros(3, np.float32)})
    (there / "half.ckpt").write_bytes((there / "lightly.ckpt").read_bytes()[:5000])
    (there / "code.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    (there / "old.safetensors").write_bytes(b"precious")
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    for out in (["new/o.safetensors"], ["old.safetensors", "--overwrite"]):
        answer = call(*words, "--out", *out)
        assert (answer.code, answer.out) == (2, "")
        for part in expected:
            assert part in answer.complaint
    assert {path: path.read_bytes() for path in there.rglob("*") if path.is_file()} == before
    assert not (there / "new").exists()


def test_help_says_what_files_may_hold(call):
    for command, words in {
        "import": ("FILE --out FILE", "--layout NAME", "--which NETWORK", "BYOL learner", "DeepMind's .pkl"),
        "export": ("RUN --out FILE", "--layout NAME", "the whole learner", "byol-pytorch, A, B"),
        "convert": ("IN OUT", "DeepMind's .pkl"),
        "train": ("DATA --out RUN", "a whole BYOL learner's"),
    }.items():
        text = " ".join(call(command, "--help").out.split())
        for word in words:
            assert word in text
