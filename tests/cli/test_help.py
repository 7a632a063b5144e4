"""Help: every sub-command explains itself, at once, without loading what only the work needs."""

import os
import re
import subprocess
import sys

import pytest

from byol_jax.cli.main import COMMANDS

HEAVY = ("jax", "jaxlib", "flax", "optax", "torch", "numpy", "rich", "PIL", "scipy", "safetensors")
POSITIONALS = {
    "train": ["DATA"],
    "evaluate": ["RUN"],
    "embed": ["RUN"],
    "export": ["RUN"],
    "import": ["FILE"],
    "convert": ["IN", "OUT"],
    "preview": ["DATA"],
    "presets": [],
    "bench": [],
    "demo": [],
    "env": [],
}
OPTIONS = {
    "train": "network image-size batch-size steps epochs seed out checkpoint-every log-every resume overwrite init-from"
    " which-weights prefix weights workers hidden-layer moving-average-decay learning-rate projection-size"
    " num-processes process-id coordinator-address preset views augment optimizer weight-decay schedule warmup-steps"
    " layout fit channels dtype remat batchnorm-group shard-state health-every stop-on-collapse probe probe-every",
    "evaluate": "data json which k labels layout protocol linear-epochs label-fraction finetune-epochs"
    " finetune-learning-rate finetune-batch-size finetune-augment",
    "embed": "data out which project keep-map pool-map overwrite network weights init-from which-weights prefix"
    " image-size channels hidden-layer layout fit",
    "export": "out which layout overwrite",
    "import": "out network which layout overwrite which-weights prefix dtype",
    "convert": "overwrite json which-weights prefix",
    "preview": "out image-size augment seed count network weights init-from which-weights prefix hidden-layer"
    " layout fit channels",
    "presets": "json",
    "bench": "out",
    "demo": "out overwrite steps seed",
    "env": "json",
}


def _modules_loaded_by(*words):
    """Top-level packages that a fresh `python -m byol_jax WORDS` imports, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "byol_jax", *words], capture_output=True, text=True, timeout=60
    )
    names = re.findall(r"^import time:.*\|\s+([\w.]+)$", done.stderr, re.MULTILINE)
    return {name.split(".")[0] for name in names}, done


def test_the_table_covers_every_command():
    assert list(POSITIONALS) == list(OPTIONS) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(call, command):
    answer = call(command, "--help")
    assert answer.code == 0
    assert answer.err == ""
    usage = answer.out.splitlines()[0]
    assert usage.startswith(f"usage: byol-jax {command} ")
    for positional in POSITIONALS[command]:
        assert f" {positional}" in usage
    assert set(OPTIONS[command].split()) <= set(re.findall(r"--([a-z][a-z-]*)", answer.out))


def test_help_of_train_says_the_programs_defaults(call):
    from byol_jax.train.program import Program

    text = " ".join(call("train", "--help").out.split())
    for name in ("checkpoint_every", "log_every", "workers"):
        option = f"--{name.replace('_', '-')} N"
        assert re.search(rf"{option} [^()]*\({Program.__dataclass_fields__[name].default}\)", text), option


def test_help_names_every_command(call):
    answer = call("--help")
    assert answer.code == 0
    assert "Exit code: 0 done, 1 failed, 2 something to change on your side, 130 stopped" in answer.out
    assert all(re.search(rf"^  {name} ", answer.out, re.MULTILINE) for name in COMMANDS)


def test_help_wins_over_a_wrong_option(call):
    assert call("train", "--nonsense", "--help").code == 0


def test_version_is_the_packages_own(call):
    import byol_jax

    answer = call("--version")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.split() == ["byol-jax", byol_jax.__version__]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["--version"], ["presets"]])
def test_help_loads_nothing_heavy(words):
    loaded, done = _modules_loaded_by(*words)
    assert done.returncode == 0
    assert "argparse" in loaded
    assert not loaded.intersection(HEAVY)


def test_a_wrong_call_loads_nothing_heavy(tmp_path):
    loaded, done = _modules_loaded_by("train", str(tmp_path), "--out", str(tmp_path / "new"), "--bach-size", "3")
    assert done.returncode == 2
    assert not loaded.intersection(HEAVY)


def test_a_reader_who_has_gone_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "byol_jax", "--version"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
