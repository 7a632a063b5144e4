"""From a folder of images to features, weights and a picture, as a person would do it: one command after another.

Twelve images of two classes, a small network and three steps: enough to see that everything fits together and nothing
of what it learns. Every test reads one run, which is trained once.
"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from two_classes import write_two_classes

from byol_jax.cli.commands.evaluate import _print_table
from byol_jax.cli.main import main
from byol_jax.data import evaluation_images, open_dataset

NETWORK = ["--network", "small_cnn", "--projection-size", "8", "--projection-hidden-size", "16", "--augment", "none"]
LENGTH = ["--image-size", "16", "--batch-size", "8", "--steps", "3", "--checkpoint-every", "2", "--log-every", "1"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with `photos/dark` and `photos/light`, six images each, and `run`, trained on them."""
    root = tmp_path_factory.mktemp("world")
    write_two_classes(root / "photos")
    words = ["train", root / "photos", "--out", root / "run", *NETWORK, *LENGTH]
    assert main([str(word) for word in words]) == 0
    return root


def _read_npz(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def test_train_leaves_a_run(world):
    run = world / "run"
    config = json.loads((run / "config.json").read_text())
    assert config["network"] == {"name": "small_cnn", "channels": 3, "num_classes": 10}
    assert config["learner"]["optimizer"] == "adam"
    assert (config["image_size"], config["steps"], config["batch_size"]) == (16, 3, 8)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert (run / "checkpoints" / "00000003").is_dir()
    assert (run / "views.png").is_file()


def test_a_finished_run_is_not_trained_again(world, call):
    answer = call("train", world / "photos", "--out", world / "run", *NETWORK, *LENGTH)
    assert answer.code == 2
    assert "--resume, --overwrite" in answer.complaint


def test_another_network_cannot_resume(world, call):
    answer = call("train", world / "photos", "--out", world / "run", *NETWORK, *LENGTH, "--resume", "--seed", "1")
    assert answer.code == 2
    assert "seed: stored 0, given 1" in answer.complaint


def test_resume_goes_further(world, call):
    assert call("train", world / "photos", "--out", world / "longer", *NETWORK, *LENGTH).code == 0
    more = [*NETWORK, *LENGTH, "--steps", "5", "--resume"]
    answer = call("train", world / "photos", "--out", world / "longer", *more)
    assert answer.code == 0
    assert answer.out.split() == [str(world / "longer")]
    assert (world / "longer" / "checkpoints" / "00000005").is_dir()


@pytest.mark.filterwarnings("always::byol_jax.checkpoint.DamagedCheckpointWarning")
def test_a_damaged_checkpoint_is_passed_over(world, call):
    copy, out = world / "damaged", world / "older.npy"
    shutil.copytree(world / "run", copy)
    words = ["embed", copy, "--data", world / "photos", "--out", out, "--overwrite"]
    (damaged,) = (copy / "checkpoints" / "00000003").glob("*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    answer = call(*words)
    assert answer.code == 0
    assert damaged.name in answer.complaint

    shutil.rmtree(copy / "checkpoints")
    answer = call(*words)
    assert answer.code == 2
    assert "no intact checkpoint" in answer.complaint


def test_embed(world, call):
    answer = call("embed", world / "run", "--data", world / "photos", "--out", world / "new" / "features.npz")
    assert answer.code == 0
    arrays = _read_npz(world / "new" / "features.npz")
    assert list(arrays) == ["embeddings", "names", "labels", "class_names"]
    assert arrays["embeddings"].dtype == np.float32
    assert arrays["embeddings"].shape == (12, 128 * 2 * 2)
    assert arrays["labels"].tolist() == [0] * 6 + [1] * 6
    assert arrays["class_names"].tolist() == ["dark", "light"]
    assert arrays["names"][0] == "dark/0.png"
    assert answer.out == f"12 x 512: {world / 'new' / 'features.npz'}\n"


def test_embeddings_do_not_depend_on_the_batch(world, call):
    for size in (5, 12):
        out = world / f"features{size}.npy"
        assert call("embed", world / "run", "--data", world / "photos", "--out", out, "--batch-size", size).code == 0
    np.testing.assert_allclose(np.load(world / "features5.npy"), np.load(world / "features12.npy"), atol=1e-5)


def test_embed_the_target_and_the_projection(world, call):
    out = world / "target.npy"
    words = ["embed", world / "run", "--data", world / "photos", "--out", out]
    assert call(*words, "--which", "target").code == 0
    assert np.load(out).shape == (12, 512)
    assert call(*words, "--project", "--overwrite").code == 0
    assert np.load(out).shape == (12, 8)


def test_class_folders_beside_a_text_keep_their_labels(world, call):
    shutil.copytree(world / "photos", world / "with_text")
    (world / "with_text" / "README.txt").write_text("where they come from")
    assert call("embed", world / "run", "--data", world / "with_text", "--out", world / "with_text.npz").code == 0
    arrays = _read_npz(world / "with_text.npz")
    assert (arrays["labels"].tolist(), arrays["class_names"].tolist()) == ([0] * 6 + [1] * 6, ["dark", "light"])


@pytest.mark.filterwarnings("default::UserWarning")
def test_images_beside_folders_leave_no_labels_and_that_is_said(world, call):
    shutil.copytree(world / "photos", world / "beside")
    shutil.copy(world / "photos" / "dark" / "0.png", world / "beside" / "another.png")
    answer = call("embed", world / "run", "--data", world / "beside", "--out", world / "beside.npz")
    assert answer.code == 0, answer.err
    assert "no labels are written, since images lie beside its folders, 'another.png' for one (1 in all)" in answer.err
    arrays = _read_npz(world / "beside.npz")
    assert len(arrays["names"]) == 13
    assert "labels" not in arrays


def test_a_run_among_its_own_images_is_none_of_them(world, call, monkeypatch):
    shutil.copytree(world / "photos" / "dark", world / "inside")
    shutil.copytree(world / "run", world / "inside" / "first")
    monkeypatch.chdir(world / "inside")
    assert call("preview", ".", "--image-size", "16", "--out", "look.png").code == 0
    answer = call("embed", "first", "--data", ".", "--out", "features.npz")
    assert answer.err.splitlines() == [
        "1 image can't be used and was skipped:",
        "skipped 'look.png': a picture that byol_jax drew of images and their views: not used",
        "1 folder or hidden file was left out:",
        "left out 'first': a run's folder of byol_jax: not entered",
    ]
    arrays = _read_npz(world / "inside" / "features.npz")
    assert arrays["names"].tolist() == [f"{number}.png" for number in range(6)]


@pytest.fixture(scope="module")
def mixed(world):
    """The photos, one of which is none, and one of which has a name that isn't read."""
    shutil.copytree(world / "photos", world / "mixed")
    (world / "mixed" / "dark" / "1.png").write_bytes(b"not a picture")
    (world / "mixed" / "light" / "9.heic").touch()
    (world / "mixed" / ".ipynb_checkpoints").mkdir()
    shutil.copy(world / "photos" / "dark" / "0.png", world / "mixed" / ".ipynb_checkpoints" / "0-checkpoint.png")
    return world / "mixed"


SKIPPED = [
    "2 images can't be used and were skipped:",
    "skipped 'dark/1.png': not an image, or damaged at its start",
    "skipped 'light/9.heic': images named .heic aren't read: convert it to .png, .tif or .jpg",
    "1 folder or hidden file was left out:",
    "left out '.ipynb_checkpoints': a hidden folder or a system's own: not entered",
]


def test_embed_names_what_it_skips_and_its_rows(world, mixed, call):
    out = world / "mixed.npy"
    answer = call("embed", world / "run", "--data", mixed, "--out", out)
    assert (answer.code, answer.err.splitlines()) == (0, SKIPPED)
    names = (world / "mixed.npy.names.txt").read_text().splitlines()
    assert names == [f"dark/{i}.png" for i in (0, 2, 3, 4, 5)] + [f"light/{i}.png" for i in range(6)]
    assert (world / "mixed.npy.labels.txt").read_text().split() == [name.partition("/")[0] for name in names]
    assert call("embed", world / "run", "--data", mixed, "--out", world / "mixed.npz").code == 0
    arrays = _read_npz(world / "mixed.npz")
    assert arrays["names"].tolist() == names
    np.testing.assert_array_equal(np.load(out), arrays["embeddings"])
    assert not (world / "mixed.npz.names.txt").exists()
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.save(world / "three.npy", images)
    answer = call("embed", world / "run", "--data", world / "three.npy", "--out", out)
    assert (answer.code, "mixed.npy.names.txt' exists" in answer.complaint) == (2, True)
    assert call("embed", world / "run", "--data", world / "three.npy", "--out", out, "--overwrite").code == 0
    assert np.load(out).shape == (3, 512)
    assert not (world / "mixed.npy.names.txt").exists()  # of other rows


def test_a_file_that_fails_after_the_scan_leaves_no_row(world, call, monkeypatch):
    """In a folder too large to be decoded before: another image would stand under its name."""
    folder, out = world / "late", world / "late.npy"
    shutil.copytree(world / "photos", folder)
    (folder / "dark" / "new\nline.png").write_bytes((folder / "dark" / "0.png").read_bytes())
    (folder / "light" / "2.png").write_bytes((folder / "light" / "2.png").read_bytes()[:-200])
    monkeypatch.setitem(open_dataset.__kwdefaults__, "scan_limit", 1)
    for words in (["--out", out], ["--out", world / "late.npz"]):
        answer = call("embed", world / "run", "--data", folder, *words)
        assert answer.code == 0
        assert answer.err.splitlines()[0] == "1 image can't be used and was skipped:"
        assert "skipped 'light/2.png'" in answer.err
    assert np.load(out).shape == (12, 512)
    names = (world / "late.npy.names.txt").read_text().splitlines()
    assert (names[6], len(names), "light/2.png" in names) == (r"dark/new\nline.png", 12, False)
    arrays = _read_npz(world / "late.npz")
    assert {len(arrays[name]) for name in ("embeddings", "names", "labels")} == {12}


def test_preview_names_what_it_skips(world, mixed, call):
    words = ["--image-size", "16", "--augment", "none", "--overwrite"]
    answer = call("preview", mixed, "--out", world / "mixed.png", *words)
    assert (answer.code, answer.err.splitlines()) == (0, SKIPPED)


def test_the_fit_is_kept_and_compared(world, call):
    out = world / "contained"
    words = ["train", world / "photos", "--out", out, *NETWORK, *LENGTH]
    assert call(*words, "--fit", "contain").code == 0
    assert json.loads((out / "config.json").read_text())["fit"] == "contain"
    assert "fit" not in json.loads((world / "run" / "config.json").read_text())
    answer = call(*words, "--resume")
    assert (answer.code, 'fit: stored "contain", given nothing' in answer.complaint) == (2, True)
    answer = call("train", world / "photos", "--out", world / "run", *NETWORK, *LENGTH, "--resume", "--fit", "none")
    assert (answer.code, 'fit: stored nothing, given "none"' in answer.complaint) == (2, True)
    assert call(*words, "--resume", "--fit", "contain", "--steps", "4").code == 0
    assert call("embed", out, "--data", world / "photos", "--out", world / "contained.npy").code == 0
    images = evaluation_images(open_dataset(world / "photos", image_size=16, fit="contain"), np.arange(12), 16)
    np.save(world / "whole.npy", images)
    assert call("embed", out, "--data", world / "whole.npy", "--out", world / "whole_features.npy").code == 0
    np.testing.assert_allclose(np.load(world / "contained.npy"), np.load(world / "whole_features.npy"), atol=1e-5)


def test_none_trains_on_a_shape_of_the_folders(world, call):
    out = world / "uncut"
    assert call("train", world / "photos", "--out", out, *NETWORK, *LENGTH, "--steps", "1", "--fit", "none").code == 0
    assert json.loads((out / "images.json").read_text())["shape"] == [18, 22]  # 20 x 24 pixels, for views of 16


def test_arrays_of_any_channels_in_either_layout(world, call):
    images = np.random.default_rng(0).integers(0, 256, (16, 13, 24, 24), np.uint8)
    np.save(world / "sat.npy", images)
    words = ["train", world / "sat.npy", "--out", world / "sat", *NETWORK, "--steps", "1", "--batch-size", "8"]
    answer = call(*words)
    assert (answer.code, "24 × 24 pixels of 13 channels (NCHW): say which layout" in answer.complaint) == (2, True)
    assert not (world / "sat").exists()
    assert call(*words, "--layout", "NCHW", "--channels", "13").code == 0
    config = json.loads((world / "sat" / "config.json").read_text())
    assert (config["image_size"], config["learner"]["num_channels"]) == (24, 13)
    assert "say layout NCHW" in call(*words, "--steps", "2", "--resume").complaint


def test_evaluate(world, call):
    answer = call("evaluate", world / "run", "--data", world / "photos", "--k", "3", "--json")
    assert answer.code == 0
    facts = json.loads(answer.out)
    assert set(facts["scores"]) == {"raw_pixels", "random_init", "byol"}
    assert (facts["train_images"], facts["test_images"], facts["classes"]) == (9, 3, 2)
    assert all(0 <= score <= 1 for scores in facts["scores"].values() for score in scores.values())
    assert not facts["projections"]["collapsed"]
    text = (world / "run" / "evaluation.json").read_text()
    assert json.loads(text) == facts
    assert max(len(line) for line in text.splitlines()) < 400
    assert len(text.splitlines()) < 200, "a matrix's row is one line"


def test_the_default_is_what_it_was_and_says_what_it_is(world, call):
    """The keys of evaluation.json before protocols could be chosen; each number's protocol and interval beside it."""
    facts = json.loads(call("evaluate", world / "run", "--data", world / "photos", "--k", "3", "--json").out)
    assert list(facts)[:9] == [
        "which", "step", "data", "split", "train_images", "test_images", "classes", "seed", "k",
    ]  # fmt: skip
    assert facts["k"] == 3
    for name, scores in facts["scores"].items():
        assert list(scores) == ["knn", "linear"]
        for key, accuracy in scores.items():
            low, high = facts["intervals"][name][key]
            assert 0 <= low <= accuracy <= high <= 1
            counts = np.array(facts["confusion"]["counts"][name][key])
            assert (counts.shape, counts.sum()) == ((2, 2), 3)
            assert np.trace(counts) == pytest.approx(3 * accuracy)
    assert facts["confusion"]["classes"] == ["dark", "light"]
    assert [len(facts["map"]["coordinates"]["byol"][side]) for side in ("x", "y")] == [3, 3]
    assert (world / "run" / "neighbours.png").is_file()
    page = (world / "run" / "report.html").read_text()
    assert page.count('<svg class="scatter"') == 3
    assert "Nearest neighbours" in page
    titles = {key: protocol["title"] for key, protocol in facts["protocols"].items()}
    assert titles == {"knn": "kNN, k = 3", "linear": "logistic regression"}
    assert "L-BFGS" in facts["protocols"]["linear"]["how"]
    assert facts["chosen"]["byol"]["linear"].keys() == {"l2"}


def test_every_protocol_side_by_side(world, call):
    """Pixels can't be fine-tuned: they get logistic regression on the same labels, where there are enough."""
    words = ["--protocol", "knn,linear,finetune", "--k", "5,1,3", "--linear-epochs", "2", "--label-fraction", "0.5,1"]
    words += ["--finetune-epochs", "2", "--finetune-learning-rate", "0.1", "--finetune-augment", "none"]
    answer = call("evaluate", world / "run", "--data", world / "photos", *words, "--json")
    assert answer.code == 0
    facts = json.loads(answer.out)
    keys = ["knn_5", "knn_1", "knn_3", "linear_sgd", "linear_sgd_bn", "finetune_0.5", "finetune_1"]
    assert facts["k"] == [5, 1, 3]
    assert list(facts["protocols"]) == keys
    assert all(list(facts["scores"][name]) == keys for name in ("random_init", "byol"))
    assert list(facts["scores"]["raw_pixels"]) == [*keys[:5], "finetune_1"]
    assert list(facts["scores"]) == ["raw_pixels", "random_init", "byol"]
    assert "4 labels" in facts["protocols"]["finetune_0.5"]["how"]
    assert "2 epochs of batches of 9 (2 steps)" in facts["protocols"]["finetune_1"]["how"]
    assert "knn_1" not in facts["confusion"]["counts"]["byol"]
    page = (world / "run" / "report.html").read_text()
    assert page.count('<svg class="matrix"') == 5 + 5 + 4
    for words in ("kNN, k = 5", "linear, SGD, batch norm", "fine-tuned, 50 % of labels", "centre views"):
        assert words in page


def test_fewer_images_than_neighbours_are_said(world, call):
    answer = call(
        "evaluate", world / "run", "--data", world / "photos", "--protocol", "knn", "--k", "3,20,200", "--json"
    )
    assert "--k 200: 9 images fit the classifiers, so k = 9" in answer.complaint
    assert json.loads(answer.out)["k"] == [3, 9]


def test_too_few_labels_to_choose_a_rate_on(world, call):
    before = (world / "run" / "evaluation.json").read_bytes()
    words = ["evaluate", world / "run", "--data", world / "photos", "--protocol", "finetune", "--label-fraction", "0.1"]
    answer = call(*words)
    assert answer.code == 2
    assert "--label-fraction 0.1 leaves 2 labels, too few to choose a learning rate on: give one" in answer.complaint
    assert (world / "run" / "evaluation.json").read_bytes() == before
    answer = call(*words, "--finetune-learning-rate", "0.02", "--finetune-epochs", "1")
    assert answer.code == 0
    assert "fine-tuned, 10 % of labels" in " ".join(answer.out.split())


def test_evaluate_prints_a_table(world, call):
    answer = call("evaluate", world / "run", "--data", world / "photos", "--k", "3")
    assert answer.code == 0
    for word in ("raw pixels", "random init", "byol", "kNN, k = 3", "logistic regression", "L-BFGS", "in brackets"):
        assert word in answer.out
    assert "images of 2 classes (dark, light)" in " ".join(answer.out.split())


def test_a_table_names_a_few_classes_whatever_they_are_called(capsys):
    scores = {"byol": {"knn": 0.5, "linear": 0.25}}
    intervals = {"byol": {"knn": [0.4, 0.6], "linear": [0.0, 0.5]}}
    protocols = {key: {"title": f"[{key}]", "how": "how"} for key in ("knn", "linear")}
    facts = {"test_images": 8, "train_images": 9, "classes": 5, "split": "as in [/x]", "step": 1, "which": "online"}
    facts |= {"k": 3, "scores": scores, "intervals": intervals, "protocols": protocols}
    _print_table(facts, ("[/red]", "a\nb", "c", "d", "e"))
    assert "8 images of 5 classes ([/red], a b, c, d, …), per cent" in " ".join(capsys.readouterr().out.split())
    _print_table(facts, None)
    printed = " ".join(capsys.readouterr().out.split())
    assert "8 images of 5 classes, per cent" in printed
    for words in ("[knn]", "50.0 (40.0–60.0)", "25.0 (0.0–50.0)", "[linear]: how"):
        assert words in printed


def test_evaluate_needs_labels(world, call):
    answer = call("evaluate", world / "run", "--data", world / "photos" / "dark")
    assert answer.code == 2
    assert "sub-folders" in answer.complaint


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_export_gives_the_features_to_torch(world, call, suffix):
    torch = pytest.importorskip("torch")
    import interop
    from byol_jax.nets.cnn import torch_expression

    out = world / f"net{suffix}"
    assert call("export", world / "run", "--out", out).code == 0
    network = eval(torch_expression(channels=3, image_size=16), {"nn": torch.nn})
    state_dict = {name: torch.from_numpy(np.array(array)) for name, array in interop.load_state_dict(out).items()}
    network.load_state_dict(state_dict, strict=True)

    assert call("embed", world / "run", "--data", world / "photos", "--out", world / f"{suffix[1:]}.npy").code == 0
    from byol_jax.settings import IMAGENET_MEAN_STD

    images = evaluation_images(open_dataset(str(world / "photos"), image_size=16), np.arange(12), 16)
    mean, std = (np.asarray(part, np.float32) for part in IMAGENET_MEAN_STD)
    inputs = torch.from_numpy(((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        features = network.eval()[:-1](inputs).numpy()
    np.testing.assert_allclose(np.load(world / f"{suffix[1:]}.npy"), features, atol=1e-5)


def test_exported_weights_start_another_run(world, call):
    out, weights = world / "second", world / "start.safetensors"
    assert call("export", world / "run", "--out", weights, "--which", "target").code == 0
    assert call("train", world / "photos", "--out", out, *NETWORK, *LENGTH, "--init-from", weights).code == 0
    assert json.loads((out / "config.json").read_text())["init_from"]["file"] == "start.safetensors"


def test_import_and_convert(world, call):
    weights, imported, converted = (world / name for name in ("a.pt", "b.safetensors", "c.npz"))
    assert call("export", world / "run", "--out", weights).code == 0
    answer = call("import", weights, "--out", imported, "--network", "small_cnn", "--image-size", "16")
    assert answer.code == 0
    assert call("convert", imported, converted).code == 0
    import interop

    first, last = interop.load_state_dict(weights), interop.load_state_dict(converted)
    assert set(first) == set(last)
    for name, array in first.items():
        np.testing.assert_array_equal(array, last[name])


def test_import_of_another_network_says_what_is_missing(world, call):
    weights = world / "d.npz"
    assert call("export", world / "run", "--out", weights).code == 0
    answer = call("import", weights, "--out", world / "e.safetensors", "--network", "resnet18")
    assert answer.code == 2
    assert "layer1" in answer.complaint
    assert not (world / "e.safetensors").exists()


def test_a_run_without_momentum_has_no_target(world, call):
    out = world / "simsiam"
    assert call("train", world / "photos", "--out", out, *NETWORK, *LENGTH, "--no-momentum").code == 0
    answer = call("export", out, "--out", world / "f.npz", "--which", "target")
    assert answer.code == 2
    assert "--which online" in answer.complaint


@pytest.mark.parametrize("augment", ["simclr", "byol", "none"])
def test_preview(world, call, augment):
    out = world / f"{augment}.png"
    words = ["preview", world / "photos", "--out", out, "--image-size", "16", "--augment", augment]
    answer = call(*words, "--count", "3", "--seed", "1")
    assert answer.code == 0
    assert answer.out == f"{out}\n"
    with Image.open(out) as picture:
        assert min(picture.size) >= 32


def test_embedded_images_need_no_file(world, call):
    out = world / "grey"
    words = ["train", "fashion-mnist", "--out", out, *NETWORK, "--steps", "2", "--batch-size", "8"]
    recipe = ["--augment", "small_grey", "--optimizer", "lars", "--schedule", "cosine", "--warmup-steps", "1"]
    assert call(*words, *recipe).code == 0
    config = json.loads((out / "config.json").read_text())
    assert config["image_size"] == 28
    assert config["network"]["channels"] == config["learner"]["num_channels"] == 1


def test_env(call):
    answer = call("env", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["packages"]["jax"]
    assert "python: " in call("env").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hidden-layer", "avgpol"], "avgpol"),
        (["--batch-size", "64"], "12 images"),
        (["--image-size", "1"], "small_cnn"),
        (["--batch-size", "9"], "devices"),
    ],
)
def test_what_only_the_network_or_the_data_can_refuse(world, call, words, expected):
    answer = call("train", world / "photos", "--out", world / "never", *NETWORK, *LENGTH, *words)
    assert answer.code == 2
    assert expected in answer.complaint
    assert not (world / "never").exists()
