"""What commit f664bb0 left on disk is read by the code as it is: runs, checkpoints, networks, learners' files.

Stored leaves come back with the same bits. What is computed from them (features, losses, the steps of a run that goes
on) agrees within TOLERANCE of the largest number beside it. README.md says what lies here and who made it.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import byol_jax
import interop
from byol_jax import checkpoint
from byol_jax.cli.main import main

HERE = Path(__file__).resolve().parent

TOLERANCE = 5e-5
"""Of the largest number beside it. Measured, one device against eight, LLVM's optimisations on against off: 1e-6 for
features, of runs that went on too, and 5e-6 for metrics."""

STEPPED = 5e-3
"""The same for features after one more step of a checkpoint. Measured: 6e-4 with Adam, which makes a step of full
length of a gradient that is nearly 0, whatever its sign."""

MEASURED = ("seconds", "seconds_per_step", "images_per_second", "data_wait")
"""What a row of metrics says about the machine."""


@cache
def facts():
    """What f664bb0 said: digests, rows of metrics, results of evaluate and inspect."""
    return json.loads((HERE / "expected.json").read_text())


@cache
def arrays():
    """Features that f664bb0 computed."""
    with np.load(HERE / "expected.npz") as archive:
        return dict(archive)


def assert_close(new, old, tolerance=TOLERANCE):
    new, old = np.asarray(new, np.float64), np.asarray(old, np.float64)
    assert new.shape == old.shape
    assert np.abs(new - old).max() <= tolerance * np.abs(old).max()


def digests(state_dict):
    """Tensors by name: dtype, shape and hash."""
    return {
        name: [array.dtype.name, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()[:16]]
        for name, array in state_dict.items()
    }


def leaves(directory):
    """Every stored leaf of the one checkpoint in `directory`, as another program would read it."""
    (path,) = directory.glob("*/state-*.safetensors")
    return digests(safetensors.numpy.load(path.read_bytes()))


def rows(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in lines]


def assert_same_facts(new, old):
    """The same keys; numbers with a fraction are close, everything else is equal."""
    if isinstance(old, dict):
        assert old.keys() <= new.keys()
        for key in old:
            assert_same_facts(new[key], old[key])
    elif isinstance(old, float):
        assert new == pytest.approx(old, rel=TOLERANCE, abs=TOLERANCE)
    else:
        assert new == old


@pytest.fixture
def place(tmp_path, monkeypatch):
    """`place("lars")`: a copy of a run, with the photos beside it, where the process then is."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)

    def copy(name):
        shutil.copytree(HERE / "photos", "photos")
        if name in cases.START:
            with zipfile.ZipFile(HERE / f"{name}.zip") as archive:
                archive.extractall(".")
        else:
            shutil.copytree(HERE / name, name)
        return Path(name)

    return copy


@pytest.fixture
def call(capsys):
    """`call("train", ...)`: what the command prints; it must succeed."""

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def embedded(call):
    """`embedded(run)`: the features of the photos that `byol-jax embed` writes."""

    def features(run, *options):
        call("embed", run, "--data", "photos", "--out", "features.npz", "--overwrite", *options)
        with np.load("features.npz") as archive:
            return archive["embeddings"]

    return features


def test_no_file_tells_where_it_was_made():
    texts = [path for path in HERE.rglob("*") if path.suffix in (".json", ".jsonl", ".log", ".html")]
    assert texts
    contents = {path: path.read_text() for path in texts}
    for name in cases.START:
        with zipfile.ZipFile(HERE / f"{name}.zip") as archive:
            contents |= {name: archive.read(name).decode() for name in archive.namelist() if name.endswith("json")}
    assert not [path for path, text in contents.items() if "/tmp" in text or "/home" in text or "/root" in text]


# runs


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.RUNS)
def test_a_run_goes_on(name, place, call, embedded):
    """With the words that it was started with, and --resume."""
    run = place(name)
    before = (run / "metrics.jsonl").read_text().splitlines()
    call(*cases.train_words(name, "--resume", *cases.LONGER.get(name, ())))
    after = (run / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len(facts()[f"{name}/rows"]) > len(before)
    for new, old in zip(rows(run), facts()[f"{name}/rows"], strict=True):
        assert_same_facts(new, old)
    assert_close(embedded(run), arrays()[f"{name}/after/online"])


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.RUNS)
def test_a_run_embeds(name, place, embedded):
    run = place(name)
    assert_close(embedded(run), arrays()[f"{name}/online"])
    assert_close(embedded(run, "--project"), arrays()[f"{name}/project"])
    if name in cases.HAVE_TARGET:
        assert_close(embedded(run, "--which", "target"), arrays()[f"{name}/target"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lars", "alone"])
def test_a_run_is_evaluated(name, place, call):
    run = place(name)
    result = json.loads(call("evaluate", run, "--data", "photos", "--json"))
    assert_same_facts(result, facts()[f"{name}/evaluation"])


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.RUNS)
def test_a_run_is_exported(name, place, call):
    run = place(name)
    for which in ("online", "target") if name in cases.HAVE_TARGET else ("online",):
        call("export", run, "--out", "weights.safetensors", "--which", which, "--overwrite")
        stored = safetensors.numpy.load(Path("weights.safetensors").read_bytes())
        assert digests(stored) == facts()[f"{name}/exported/{which}"]


@pytest.mark.slow
def test_a_run_says_what_differs(place, capsys):
    """A configuration of f664bb0 is compared, not passed over."""
    place("alone")
    words = cases.train_words("alone", "--resume")
    words[words.index("sgd")] = "adam"
    assert main(words) == 2
    assert "optimizer" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_from_python_goes_on(place):
    run = place("python")
    before = len(rows(run))
    state = cases.pretrain(run, resume=True)
    assert len(rows(run)) == len(facts()["python/rows"]) > before
    for new, old in zip(rows(run), facts()["python/rows"], strict=True):
        assert_same_facts(new, old)
    learner = byol_jax.make_learner(cases.small_resnet(), image_size=cases.SIDE, **cases.PYTHON_OPTIONS)
    assert_close(learner.embed(state, cases.batch()), arrays()["python/after/features"])


# checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The folder with one folder for each learner."""
    folder = tmp_path_factory.mktemp("kept")
    with zipfile.ZipFile(HERE / "checkpoints.zip") as archive:
        archive.extractall(folder)
    return folder / "checkpoints"


def shapes(name):
    """A learner's state without numbers."""
    return jax.eval_shape(cases.learner(name).init, cases.key())


def assert_features(name, state, before, tolerance):
    """A learner's features and projections, of both networks where there are two, are those under `before`/."""
    found = cases.features_of(name, state)
    assert found.keys() == {key.removeprefix(f"{before}/") for key in arrays() if key.rpartition("/")[0] == before}
    for what, features in found.items():
        assert_close(features, arrays()[f"{before}/{what}"], tolerance)


def blank(name):
    """A learner's state with 0 for every number."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(name).replace(key=()))
    return zeros.replace(key=cases.key())


@pytest.mark.parametrize("name", cases.LEARNERS)
def test_a_checkpoint_has_the_same_bits(name, checkpoints, tmp_path):
    state, position = checkpoint.restore(checkpoints / name, like=shapes(name))
    assert position == {"step": 2, "note": [1, None, "é"]}
    checkpoint.save(tmp_path, state, position=position)
    assert leaves(tmp_path) == leaves(checkpoints / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.LEARNERS)
def test_a_checkpoint_has_the_same_features(name, checkpoints):
    state, _ = checkpoint.restore(checkpoints / name, like=shapes(name))
    assert_features(name, state, f"checkpoints/{name}", TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padded", "separate"])
def test_a_checkpoint_goes_on(name, checkpoints):
    """The next step's metrics, and the features after it."""
    state, _ = checkpoint.restore(checkpoints / name, like=shapes(name))
    after, metrics = cases.step_of(name)(state, cases.batch())
    assert_same_facts({key: float(value) for key, value in metrics.items()}, facts()[f"checkpoints/{name}/metrics"])
    assert_features(name, after, f"checkpoints/{name}/after", STEPPED)


# files

FILES = [name.removeprefix("files/") for name in facts() if name.startswith("files/")]


def test_every_file_is_known():
    assert {path.name for path in (HERE / "files").iterdir()} == {*FILES, "network", "features.npz"}


@pytest.mark.parametrize("file", FILES)
def test_a_file_has_the_same_tensors(file, call, tmp_path):
    expected = facts()[f"files/{file}"]
    assert digests(interop.load_state_dict(HERE / "files" / file)) == expected
    call("convert", HERE / "files" / file, tmp_path / "converted.safetensors")
    assert digests(safetensors.numpy.load((tmp_path / "converted.safetensors").read_bytes())) == expected


@pytest.mark.parametrize("file", cases.FILES)
def test_a_learner_is_loaded_and_saved(file, tmp_path):
    name, layout = cases.FILES[file]
    state = interop.load_byol_checkpoint(HERE / "files" / file, like=blank(name))
    path = tmp_path / file
    interop.save_byol_checkpoint(path, state, layout=layout)
    assert digests(interop.load_state_dict(path)) == facts()[f"files/{file}"]


@pytest.mark.slow
@pytest.mark.parametrize("file", cases.FILES)
def test_a_learner_computes_the_same(file):
    name, _ = cases.FILES[file]
    state = interop.load_byol_checkpoint(HERE / "files" / file, like=blank(name))
    assert_features(name, state, f"checkpoints/{name}", TOLERANCE)


@pytest.mark.parametrize("file", cases.NETWORKS)
def test_a_network_is_loaded_and_saved(file, checkpoints):
    """It is the network of the learner's checkpoint."""
    name = cases.NETWORKS[file]
    state, _ = checkpoint.restore(checkpoints / name, like=shapes(name))
    like = byol_jax.encoder_variables(shapes(name))
    variables = interop.from_torch_state_dict(interop.load_state_dict(HERE / "files" / file), like=like)
    assert digests(interop.to_torch_state_dict(variables)) == facts()[f"files/{file}"]
    stored = byol_jax.encoder_variables(state)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables.params, stored.params))


@pytest.mark.parametrize("folder", ["traced/network", "alone/network", "files/network"])
def test_a_traced_network_is_loaded_and_saved(folder, tmp_path):
    interop.save_network(tmp_path, interop.load_network(HERE / folder))
    names = {path.name for path in (HERE / folder).iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}
    old, new = (json.loads((path / "network.json").read_text()) for path in (HERE / folder, tmp_path))
    assert new == old
    old, new = (interop.load_state_dict(path / "network.safetensors") for path in (HERE / folder, tmp_path))
    assert digests(new) == digests(old)


def test_the_users_module_takes_what_was_exported():
    torch = pytest.importorskip("torch", reason="the file is torch's")
    import their_code

    state_dict = torch.load(HERE / "files" / "improved.pt", weights_only=True)
    module = their_code.make()
    assert str(module.load_state_dict(state_dict)) == "<All keys matched successfully>"


@pytest.mark.slow
def test_a_network_starts_from_what_was_exported(place, call):
    """`embed --network --init-from` of the exported file gives the features that the run gave."""
    place("traced")
    words = ["--network", "their_code:make", "--hidden-layer", "pool", "--image-size", cases.SIDE, "--data", "photos"]
    call("embed", *words, "--init-from", HERE / "files" / "improved.pt", "--out", "new.npz")
    with np.load("new.npz") as new, np.load(HERE / "files" / "features.npz") as old:
        assert {name: (new[name].dtype, new[name].shape) for name in new} == {
            name: (old[name].dtype, old[name].shape) for name in old
        }
        assert new["names"].tolist() == old["names"].tolist()
        assert new["labels"].tolist() == old["labels"].tolist()
        assert_close(new["embeddings"], old["embeddings"])


@pytest.mark.slow
def test_a_file_is_inspected():
    """What it is, its heads, its leaves."""
    for file in FILES:
        words = [sys.executable, "-m", "interop", "inspect", "--json", str(HERE / "files" / file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        new, old = json.loads(done.stdout), facts()[f"inspected/{file}"]
        for key in ("kind", "format", "heads", "target", "source", "tensors", "parameters", "values", "bytes"):
            assert new[key] == old[key], (file, key)
        assert new["architecture"]["name"] == old["architecture"]
        assert {leaf["name"]: [leaf["dtype"], leaf["shape"]] for leaf in new["leaves"]} == {
            name: [dtype, shape] for name, (dtype, shape, _) in facts()[f"files/{file}"].items()
        }
