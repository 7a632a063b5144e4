"""Writes what lies in this folder; README.md says with which commit's code, and how to call it.

    PYTHONPATH=CHECKOUT python tests/kept/make.py NEW_FOLDER

NEW_FOLDER then holds them. They are put here by hand.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import cases
import jax
import numpy as np

import byol_jax
import interop
from byol_jax import checkpoint, parallel
from byol_jax.cli.main import main

HERE = Path(__file__).resolve().parent


def call(*words):
    """A command's standard output. `sys.argv` is what environment.json tells."""
    sys.argv = ["byol-jax", *map(str, words)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(sys.argv[1:])
    return code, out.getvalue()


@contextlib.contextmanager
def stopped_at(number):
    """SIGTERM comes during step `number` of the first run inside; None: never."""
    plain = parallel.jit

    def jit(learner, mesh):
        step, count = plain(learner, mesh), 0

        def counted(state, images):
            nonlocal count
            count += 1
            if count == number:
                signal.raise_signal(signal.SIGTERM)
            return step(state, images)

        return counted

    parallel.jit = jit
    try:
        yield
    finally:
        parallel.jit = plain


def rows(run):
    """metrics.jsonl without what the clock measured."""
    measured = ("seconds", "seconds_per_step", "images_per_second", "data_wait")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in measured} for row in lines]


def embedded(run, *options):
    """`byol-jax embed`'s features of the photos."""
    code, _ = call("embed", run, "--data", "photos", "--out", "scratch.npz", "--overwrite", *options)
    assert code == 0
    with np.load("scratch.npz") as archive:
        return archive["embeddings"]


def all_features(name, run):
    found = {"online": embedded(run), "project": embedded(run, "--project")}
    if name in cases.HAVE_TARGET:
        found["target"] = embedded(run, "--which", "target")
    return found


def digests(path):
    """A weight file's tensors: name to dtype, shape and hash."""
    return {
        name: [array.dtype.name, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()[:16]]
        for name, array in interop.load_state_dict(path).items()
    }


def make_run(name, facts, arrays):
    with stopped_at(cases.STOPPED.get(name)):
        print(name, call(*cases.train_words(name)))
    copy = Path("scratch") / name
    shutil.copytree(name, copy)
    arrays |= {f"{name}/{key}": value for key, value in all_features(name, copy).items()}
    for which in ("online", "target") if name in cases.HAVE_TARGET else ("online",):
        assert call("export", copy, "--out", "scratch.safetensors", "--which", which, "--overwrite")[0] == 0
        facts[f"{name}/exported/{which}"] = digests("scratch.safetensors")
    code, text = call("evaluate", copy, "--data", "photos", "--json")
    assert code == 0
    facts[f"{name}/evaluation"] = json.loads(text)
    os.chdir("scratch")  # so that the run has its own name, as where it goes on
    Path("photos").symlink_to("../photos")
    if name in cases.START:
        shutil.copy(Path("..") / cases.START[name][0], ".")
    code, _ = call(*cases.train_words(name, "--resume", *cases.LONGER.get(name, ())))
    assert code == 0
    facts[f"{name}/rows"] = rows(Path(name))
    arrays[f"{name}/after/online"] = embedded(Path(name))
    os.chdir("..")
    shutil.rmtree("scratch")


def make_python_run(facts, arrays):
    sys.argv = ["script.py"]
    with stopped_at(cases.STOPPED["python"]), contextlib.suppress(KeyboardInterrupt):
        cases.pretrain("python")
    copy = Path("scratch") / "python"
    shutil.copytree("python", copy)
    state = cases.pretrain(copy, resume=True)
    facts["python/rows"] = rows(copy)
    arrays["python/after/features"] = python_features(state)
    shutil.rmtree("scratch")


def python_features(state):
    options = cases.PYTHON_OPTIONS | {"image_size": cases.SIDE}
    learner = byol_jax.make_learner(cases.small_resnet(), **options)
    return np.asarray(learner.embed(state, cases.batch()))


def make_checkpoints(facts, arrays):
    states = {}
    for name in cases.LEARNERS:
        state, step = cases.first_state(name), cases.step_of(name)
        for _ in range(2):
            state, _ = step(state, cases.batch())
        checkpoint.save(Path("checkpoints") / name, state, position={"step": 2, "note": [1, None, "é"]})
        arrays |= {f"checkpoints/{name}/{key}": value for key, value in cases.features_of(name, state).items()}
        after, metrics = step(state, cases.batch())
        facts[f"checkpoints/{name}/metrics"] = {key: float(value) for key, value in metrics.items()}
        arrays |= {f"checkpoints/{name}/after/{key}": value for key, value in cases.features_of(name, after).items()}
        states[name] = state
    return states


def make_files(states, facts):
    Path("files").mkdir()
    for file, (name, layout) in cases.FILES.items():
        interop.save_byol_checkpoint(f"files/{file}", states[name], layout=layout)
    for file, name in cases.NETWORKS.items():
        network = interop.to_torch_state_dict(byol_jax.encoder_variables(states[name]))
        interop.save_state_dict(f"files/{file}", network)
    for file, options in {"improved.pt": (), "target.npz": ("--which", "target"), "run.pt": ("--layout", "C")}.items():
        assert call("export", "traced", "--out", f"files/{file}", *options)[0] == 0
    assert call("embed", "traced", "--data", "photos", "--out", "files/features.npz")[0] == 0
    interop.save_network("files/network", interop.load_network("traced/network"))
    for path in sorted(Path("files").iterdir()):
        if path.is_file() and path.name != "features.npz":
            facts[f"files/{path.name}"] = digests(path)
            facts[f"inspected/{path.name}"] = inspected(path)


def inspected(path):
    done = subprocess.run(
        [sys.executable, "-m", "interop", "inspect", "--json", str(path)], capture_output=True, check=True
    )
    found = json.loads(done.stdout)
    found["architecture"] = found["architecture"]["name"]
    return {key: value for key, value in found.items() if key not in ("path", "leaves", "container")}


def pack(name, *beside):
    """`NAME.zip` in place of the folder NAME and the files beside it."""
    with zipfile.ZipFile(f"{name}.zip", "w", zipfile.ZIP_LZMA) as archive:
        for path in [*sorted(Path(name).rglob("*")), *map(Path, beside)]:
            if path.is_file():
                archive.write(path)
                path.unlink()
    shutil.rmtree(name)


def run(folder):
    folder.mkdir(parents=True)
    os.chdir(folder)
    facts, arrays = {}, {}
    warnings.simplefilter("ignore")
    cases.write_photos(Path())
    for file, channels in cases.START.values():
        cases.write_start(file, channels)
    make_run("traced", facts, arrays)
    make_files(make_checkpoints(facts, arrays), facts)
    for name in (name for name in cases.RUNS if name != "traced"):
        make_run(name, facts, arrays)
    make_python_run(facts, arrays)
    for name, (file, _) in cases.START.items():
        pack(name, file)
    pack("checkpoints")
    for scratch in ("scratch.npz", "scratch.safetensors"):
        Path(scratch).unlink()
    np.savez_compressed("expected.npz", **arrays)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
    Path("expected.json").write_text(f"{{{lines}}}\n")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    platform.release = lambda: "any"  # environment.json tells it, and it means nothing here
    print(byol_jax.__file__)
    run(Path(sys.argv[1]))
