"""Files with several sets of weights, or a network below a prefix: what is taken, what is said, what can be asked for.

References: timm's own loading, torch's AveragedModel, VISSL's path to the trunk.
"""

import argparse

import numpy as np
import pytest
from deepmind_files import pickles
from weight_samples import assert_identical

import interop
from byol_jax.errors import CheckpointFormatError, ConfigurationError
from byol_jax.runs.artifacts import run_config
from byol_jax.runs.config import differences
from interop import convert_file, load_state_dict, open_weights, save_state_dict
from interop.__main__ import main
from interop.files import SeveralWeightsWarning
from interop.formats.containers import CONTAINERS, find_prefixes
from interop.inspect.commands import inspect_file, inspection_text

torch = pytest.importorskip("torch")


def weights(seed):
    random = np.random.default_rng(seed)
    return {"fc.weight": random.normal(size=(2, 3)).astype(np.float32), "fc.bias": np.full(2, seed, np.float32)}


RAW, AVERAGE = weights(1), weights(2)


def tensors(arrays, front=""):
    return {front + name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def save(path, content):
    torch.save(content, path)
    return path


@pytest.fixture
def timm_file(tmp_path):
    """What timm's CheckpointSaver writes."""
    content = {"epoch": 3, "arch": "resnet18", "state_dict": tensors(RAW), "optimizer": {"state": {}}, "version": 2}
    content |= {"args": argparse.Namespace(model="resnet18", lr=0.1), "metric": np.float64(77.0)}
    content |= {"state_dict_ema": tensors(AVERAGE), "amp_scaler": {"scale": 65536.0}}
    return save(tmp_path / "model_best.pth.tar", content)


def test_of_timms_files_timms_choice_is_taken_and_said(timm_file):
    timm = pytest.importorskip("timm")
    with pytest.warns(SeveralWeightsWarning, match="state_dict_ema is taken, the average, as timm does") as caught:
        taken = load_state_dict(timm_file)
    assert len(caught) == 1
    assert "which_weights='state_dict' (--which-weights state_dict) takes state_dict" in str(caught[0].message)
    for use_ema, arrays in ((True, taken), (False, load_state_dict(timm_file, which_weights="state_dict"))):
        theirs = timm.models.load_state_dict(str(timm_file), use_ema=use_ema, weights_only=False)
        assert_identical(arrays, {name: tensor.numpy() for name, tensor in theirs.items()})
    assert_identical(load_state_dict(timm_file, which_weights="state_dict_ema"), AVERAGE)


def test_an_averaged_model_of_torchs_beside_the_model(tmp_path):
    """As torchvision's training script has it."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    averaged = torch.optim.swa_utils.AveragedModel(module)
    with torch.no_grad():
        module[0].weight.zero_()
    path = save(tmp_path / "x.pth", {"model": module.state_dict(), "model_ema": averaged.state_dict(), "epoch": 1})
    with pytest.warns(SeveralWeightsWarning, match=r"as model, model_ema; model is taken; which_weights='model_ema'"):
        assert not load_state_dict(path)["0.weight"].any()
    expected = {name: tensor.numpy() for name, tensor in averaged.module.state_dict().items()}
    assert_identical(load_state_dict(path, which_weights="model_ema"), expected)


def test_mmengines_average_is_its_state_dict(tmp_path):
    """Its EMAHook (0.10.7) exchanges the two before it saves: `ema_state_dict` is what was averaged."""
    source = tensors(RAW, "module.") | {"steps": torch.tensor(7)}
    path = save(tmp_path / "x.pth", {"meta": {}, "state_dict": tensors(AVERAGE), "ema_state_dict": source})
    with pytest.warns(
        SeveralWeightsWarning, match=r"as state_dict, ema_state_dict; state_dict is taken; which_weights"
    ):
        assert_identical(load_state_dict(path), AVERAGE)
    assert_identical(load_state_dict(path, which_weights="ema_state_dict"), RAW)


@pytest.mark.parametrize("name", CONTAINERS)
def test_weights_alone_under_any_known_name_are_taken_without_a_word(name, tmp_path):
    path = save(tmp_path / "x.pth", {"epoch": 1, name: tensors(AVERAGE), "loss": {"center": torch.zeros(3)}})
    assert_identical(load_state_dict(path), AVERAGE)


def test_student_and_teacher_with_their_wrappers(tmp_path):
    student = tensors(RAW, "module.backbone.") | {"module.head.last.weight": torch.ones(4)}
    teacher = tensors(AVERAGE, "backbone.") | {"head.last.weight": torch.zeros(4)}
    path = save(tmp_path / "x.pth", {"student": student, "teacher": teacher, "dino_loss": {"center": torch.ones(2)}})
    with pytest.warns(SeveralWeightsWarning, match=r"as student, teacher; student is taken"):
        assert "backbone.fc.bias" in load_state_dict(path)
    assert_identical(load_state_dict(path, which_weights="teacher", prefix="backbone"), AVERAGE)
    assert_identical(load_state_dict(path, which_weights="student", prefix="module.backbone."), RAW)
    assert load_state_dict(path, which_weights="dino_loss")["center"].tolist() == [1, 1]


def test_entries_deep_inside_go_by_their_last_name_where_it_is_one(tmp_path):
    content = {"state_dict": tensors(RAW), "callbacks": {"EMACallback{'every': 1}": {"ema": tensors(AVERAGE)}}}
    content |= {"a": {"weights": tensors(RAW)}, "b": {"weights": tensors(AVERAGE)}, "optimizer": {"x": tensors(RAW)}}
    path = save(tmp_path / "x.ckpt", content)
    for name in ("ema", "callbacks.EMACallback{'every': 1}.ema", "b.weights", "b"):
        got = load_state_dict(path, which_weights=name) if name != "b" else None
        assert got is None or got["fc.bias"][0] == 2
    for name, words in {
        "weights": r"several entries called 'weights': give one of a\.weights, b\.weights",
        "emma": r"no weights called 'emma'; it holds state_dict, .*callbacks",
        "optimizer.x": "no weights called 'optimizer.x'",
        "b": r"no state dict found in weights \(dict\); it has weights called",
    }.items():
        with pytest.raises(CheckpointFormatError, match=words):
            load_state_dict(path, which_weights=name)


def test_weights_under_names_that_nobody_knows_are_listed(tmp_path):
    path = save(tmp_path / "x.pth", {"encoder": tensors(RAW), "target_encoder": tensors(AVERAGE), "epoch": 3})
    with pytest.raises(CheckpointFormatError, match=r"it has weights called encoder, target_encoder: which_weights"):
        load_state_dict(path)
    assert_identical(load_state_dict(path, which_weights="target_encoder"), AVERAGE)


def test_vissls_trunk_is_found(tmp_path):
    trunk = tensors(RAW, "_feature_blocks.")
    model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.zeros(2)}}
    content = {"phase_idx": 9, "classy_state_dict": {"base_model": {"model": model, "meta": {}}, "meters": {}}}
    path = save(tmp_path / "x.torch", content)
    assert list(load_state_dict(path)) == list(trunk)
    assert inspect_file(path)["weights"] == {
        "taken": "classy_state_dict.base_model.model.trunk",
        "sets": {"classy_state_dict.base_model.model.trunk": 2, "classy_state_dict.base_model.model.heads": 1},
    }
    assert_identical(load_state_dict(path, prefix="_feature_blocks"), RAW)
    assert list(load_state_dict(path, which_weights="classy_state_dict")) == list(trunk)


def test_other_kinds_of_files_have_nothing_to_choose(tmp_path):
    for ending in (".safetensors", ".npz"):
        save_state_dict(tmp_path / f"x{ending}", RAW)
        with pytest.raises(CheckpointFormatError, match=r"has no entries to take 'ema' of.*prefix \(--prefix\)"):
            load_state_dict(tmp_path / f"x{ending}", which_weights="ema")
        assert load_state_dict(tmp_path / f"x{ending}", prefix="fc")["bias"].tolist() == [1, 1]
    save(tmp_path / "x.pth", tensors(RAW))
    with pytest.raises(CheckpointFormatError, match="no weights called 'ema'; it holds no entries with weights"):
        load_state_dict(tmp_path / "x.pth", which_weights="ema")
    (tmp_path / "x.pkl").write_bytes(pickles()["tiny18/pretrain.pkl"])
    for options in ({"which_weights": "ema"}, {"prefix": "x"}):
        for read in (open_weights, inspect_file):
            with pytest.raises(CheckpointFormatError, match="--which target"):
                read(tmp_path / "x.pkl", **options)


def test_prefixes():
    state_dict = {f"encoder_{part}.{name}": array for part in "qk" for name, array in RAW.items()}
    assert find_prefixes([*state_dict, "queue"], RAW) == ["encoder_q", "encoder_k"]
    assert find_prefixes(["a.b.fc.bias", "a.b.fc.weight", "x.fc.bias"], RAW) == ["a.b"]
    assert find_prefixes(RAW, RAW) == []
    for prefix in ("encoder_q", "encoder_q.", "module.encoder_q", "_orig_mod.module.encoder_q."):
        assert_identical(open_weights(state_dict, prefix=prefix).state_dict, RAW)
    with pytest.raises(CheckpointFormatError, match="no name begins with 'encoder'; names begin with encoder_q"):
        open_weights(state_dict, prefix="encoder")
    opened = open_weights(state_dict, prefix="encoder_q")
    with pytest.raises(ConfigurationError, match="open already"):
        open_weights(opened, prefix="encoder_k")
    assert open_weights(opened) is opened


@pytest.mark.parametrize("which", [None, "state_dict"])
def test_inspect_lists_them_and_looks_into_the_one_asked_for(which, timm_file, capsys):
    words = [] if which is None else ["--which-weights", which]
    inspection = inspect_file(timm_file, which_weights=which)
    taken = which or "state_dict_ema"
    assert inspection["weights"] == {"taken": taken, "sets": {"state_dict": 2, "state_dict_ema": 2}}
    assert set(inspection["container"]["beside"]) >= {"args", "state_dict", "state_dict_ema"} - {taken}
    assert inspection["leaves"][1]["mean"] == (1 if which else 2)
    assert main(["inspect", str(timm_file), *words]) == 0
    assert capsys.readouterr().out == inspection_text(inspection) + "\n"
    line = next(line for line in inspection_text(inspection).splitlines() if line.startswith("weights, "))
    assert line.replace(", taken", "") == (
        "weights, by --which-weights: state_dict (2 tensors), state_dict_ema (2 tensors)"
    )


def test_convert_says_what_it_takes_in_one_line(timm_file, tmp_path, capsys):
    with pytest.warns(SeveralWeightsWarning):
        convert_file(timm_file, tmp_path / "a.npz")
    assert_identical(load_state_dict(tmp_path / "a.npz"), AVERAGE)
    words = ["convert", str(timm_file), str(tmp_path / "b.npz")]
    assert main([*words, "--which-weights", "state_dict", "--prefix", "fc"]) == 0
    assert capsys.readouterr().err == ""
    assert load_state_dict(tmp_path / "b.npz")["bias"].tolist() == [1, 1]
    assert main([*words, "--overwrite", "--which-weights", "ema"]) == 2
    assert "no weights called 'ema'; it holds state_dict" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::interop.files.SeveralWeightsWarning")
def test_the_command_warns_in_one_line(timm_file, tmp_path, capsys):
    assert main(["convert", str(timm_file), str(tmp_path / "a.npz")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"interop: warning: {timm_file}: holds weights of one network")


def test_a_run_notes_which_weights_it_started_from(timm_file):
    def config(**options):
        return run_config(
            network=None,
            learner={},
            data={},
            training={},
            unimportant={},
            init_from=open_weights(timm_file, **options),
        )

    raw = config(which_weights="state_dict")
    with pytest.warns(SeveralWeightsWarning):
        average = config()
    assert raw["init_from"]["entry"] == "state_dict"
    assert average["init_from"]["entry"] == "state_dict_ema"
    (found,) = differences(raw, average)
    assert found == 'init_from/entry: stored "state_dict", given "state_dict_ema"'
    (found,) = differences(raw, config(which_weights="state_dict", prefix="fc"))
    assert found == 'init_from/prefix: stored nothing, given "fc"'
    earlier = raw | {"init_from": {name: value for name, value in raw["init_from"].items() if name != "entry"}}
    assert differences(earlier, average) == []
    assert interop.open_weights({"state_dict": tensors(RAW)}).entry == ""
