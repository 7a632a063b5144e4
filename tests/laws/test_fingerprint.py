"""Functions that a run was given from Python are known by what they compute: another one is refused, or it is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from optimizer_cases import SGD, learner_with, optimizers

from byol_jax import augment, schedules
from byol_jax.runs.artifacts import run_config
from byol_jax.runs.config import differences, uncompared
from byol_jax.runs.environment import environment, rounding_changes
from byol_jax.runs.fingerprint import fingerprint, function_fingerprints

SHAPE = (20, 24, 3)
OTHERWISE = "it computes otherwise than the one that the run began with"


def prints_of(optimizer=SGD, **others):
    """Fingerprints of options of a learner on images [2, 2, 3]."""
    given = others if optimizer is SGD else others | {"optimizer": optimizer}
    return function_fingerprints(learner_with(optimizer, **others), given, SHAPE)


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "another rate": lambda: optax.sgd(0.2),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "a later end of the schedule": lambda: optax.sgd(schedules.learning_rate(0.1, 256, 10, 1000)),
    "an earlier end": lambda: optax.sgd(schedules.learning_rate(0.1, 256, 10, 900)),
    "a rate in the state": lambda: optax.inject_hyperparams(optax.sgd)(0.1),
    "another in the state": lambda: optax.inject_hyperparams(optax.sgd)(0.2),
    "an array of rates": lambda: optax.sgd(lambda step: jnp.asarray([0.1, 0.2])[step]),
    "another array": lambda: optax.sgd(lambda step: jnp.asarray([0.1, 0.3])[step]),
    "noise": lambda: optax.add_noise(0.1, 0.5, jax.random.key(0)),
    "another key": lambda: optax.add_noise(0.1, 0.5, jax.random.key(1)),
}


def test_each_optimizer_has_a_fingerprint_of_its_own_which_is_the_same_again():
    first, again = ({name: prints_of(optimizer=make())["optimizer"] for name, make in OPTIMIZERS.items()} for _ in "ab")
    assert first == again
    assert len(set(first.values())) == len(OPTIMIZERS)
    assert None not in first.values()


def test_every_function_that_was_given_has_one():
    def crop(key, image):
        top = jax.random.randint(key, (), 0, 19)
        return jax.lax.dynamic_slice(image, (top, 0, 0), (2, 2, 3))

    given = {
        "augment_fn": crop,
        "augment_fn2": lambda key, image: crop(key, image) / 2,
        "moving_average_decay": schedules.target_decay(0.9, 100),
        "optimizer": contrib.schedule_free_sgd(0.1),
        "evaluation_params": contrib.schedule_free_eval_params,
    }
    found = prints_of(**given)
    assert set(found) == {*given, "code"}
    assert None not in found.values()
    assert json.loads(json.dumps(found)) == found
    assert set(found["code"]) == {"jax", "optax", "byol_jax"}
    renamed = prints_of(**(given | {"augment_fn": lambda key, image: crop(key, image)}))
    assert renamed == found, "a name says nothing"
    for name, other in {
        "augment_fn": given["augment_fn2"],
        "moving_average_decay": schedules.target_decay(0.9, 101),
        "evaluation_params": lambda opt_state, params: params,
    }.items():
        changed = prints_of(**(given | {name: other}))
        assert [key for key in found if changed[key] != found[key]] == [name]


def test_what_was_not_given_has_none():
    assert prints_of() == {}
    assert set(prints_of(moving_average_decay=0.5)) == set()


def test_a_function_that_cannot_be_traced_on_such_images_has_null():
    def fixed(key, image):
        return image.reshape(2, 2, 3)

    assert prints_of(augment_fn=fixed)["augment_fn"] is None


@pytest.mark.slow
def test_another_process_finds_the_same():
    """Whatever its hash seed: sets come in another order there."""
    code = "import sys; sys.path[:0] = sys.argv[1:]; import test_fingerprint as t; print(t.all_fingerprints())"
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-W", "ignore", "-c", code, str(here), str(here.parents[1])]
    found = set()
    for seed in "13":
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed}
        )
        found.add(done.stdout)
    assert len(found) == 1


def all_fingerprints():
    """Of several optimisers and an augmentation with much in it."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    names = ("adafactor", "muon", "lbfgs", "partition", "prodigy")
    makers = optimizers() | {"lbfgs": lambda: optax.lbfgs(0.1, linesearch=None)}
    found = {name: prints_of(optimizer=makers[name]())["optimizer"] for name in names}
    image = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    return found | {"augment": fingerprint(augment.byol(16, view=2), jax.random.key(0), image)}


CODE = {"jax": "1", "optax": "1", "byol_jax": "a"}


def config(optimizer, code=CODE, **others):
    return {
        "network": None,
        "learner": {"optimizer": "T"},
        "fingerprints": {"optimizer": optimizer, "code": code} | others,
    }


OTHER_CODE = CODE | {"optax": "2"}


@pytest.mark.parametrize(
    ("stored", "given", "refused", "said"),
    [
        (config("x"), config("x"), [], []),
        (config("x"), config("y"), [f"optimizer: {OTHERWISE}"], []),
        (config("x"), config("x", OTHER_CODE), [], []),
        (
            config("x"),
            config("y", OTHER_CODE),
            [],
            ["optimizer: not compared with the run so far: optax 1 then, 2"],
        ),
        (config("x"), config(None), [], ["optimizer: not compared with the run so far: it can't be traced without"]),
        (config("x", augment_fn="a"), config("y", augment_fn="b"), ["optimizer", "augment_fn"], []),
        (
            {"network": None, "learner": {"optimizer": "T"}},
            config("x"),
            [],
            ["optimizer: not compared with the run so far, which began before fingerprints were kept"],
        ),
    ],
)
def test_what_computes_otherwise_is_refused_and_what_cannot_be_compared_is_said(stored, given, refused, said):
    found = differences(stored, given)
    assert len(found) == len(refused)
    assert all(fault.startswith(word) for fault, word in zip(found, refused, strict=True))
    lines = uncompared(stored, given)
    assert len(lines) == len(said) + 1
    assert all(line.startswith(word) for line, word in zip(lines, said, strict=False))
    assert lines[-1].startswith("encoder: ")


def test_a_run_of_the_command_line_has_nothing_to_say():
    recipe = {"network": {"name": "resnet18"}, "learner": {"optimizer": "adam"}}
    assert uncompared(recipe, recipe) == []
    for data in ({"kind": "folder", "count": 3, "sha256": "0"}, {"kind": "mine", "version": 2}):
        assert uncompared(recipe | {"data": data}, recipe | {"data": data}) == []


def test_arrays_are_compared_by_their_numbers_and_dtypes_by_their_names():
    def config(**learner):
        return run_config(network=None, learner=learner, data={}, training={}, unimportant={}, init_from=None)

    def pair(mean):
        return config(normalize=(np.full(3, mean), np.full(3, 0.2)))

    assert differences(pair(0.5), pair(0.5)) == []
    assert [found.split(":")[0] for found in differences(pair(0.5), pair(0.1))] == ["learner/normalize"]
    for same in (jnp.bfloat16, "bfloat16", np.dtype("bfloat16")):
        assert differences(config(dtype=jnp.bfloat16), config(dtype=same)) == []
    assert len(differences(config(dtype=jnp.bfloat16), config(dtype=np.float32))) == 1


def test_a_function_with_a_dtype_of_its_own_is_no_dtype():
    class Shade:
        dtype = np.dtype("float32")

        def __call__(self, key, image):
            return image

    config = run_config(
        network=None, learner={"augment_fn": Shade()}, data={}, training={}, unimportant={}, init_from=None
    )
    assert config["learner"]["augment_fn"] == "Shade"


def test_what_earlier_runs_kept_of_arrays_and_dtypes_is_taken():
    earlier = {"learner": {"normalize": ["ndarray", "ndarray"], "dtype": "jax.numpy.bfloat16"}}
    given = {"learner": {"normalize": [[0.5], [0.2]], "dtype": "bfloat16"}}
    assert differences(earlier, given) == []
    assert [line.split(":")[0] for line in uncompared(earlier, given)] == ["learner/normalize"]
    for spelling in ("Float32DType", "dtype[float32]", "numpy.float32", "jax.numpy.float32"):
        assert differences({"learner": {"dtype": spelling}}, {"learner": {"dtype": "float32"}}) == []
    assert len(differences({"learner": {"dtype": "Float32DType"}}, given)) == 2


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"kind": "iterable"}, "iterable"),
        ({"kind": "iterable", "dtype": None}, "iterable"),
        ({}, "a Dataset without an identity"),
        ({"kind": "mine", "count": 3}, "mine"),
    ],
)
def test_data_that_nothing_tells_from_other_data_is_said(data, named):
    recipe = {"network": {"name": "resnet18"}, "data": data}
    said = f"data: the images of {named!r} aren't compared with those of the run so far: give the same"
    assert uncompared(recipe, recipe) == [said]


# where rounding differs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"usable_cpu_count": 97}, ["usable_cpu_count 97 then, {cores} now"]),
        ({"usable_cpu_count": None}, []),
        ({"packages": {"jax": "0.4.0", "jaxlib": "0.4.1"}}, ["jax 0.4.0 then", "jaxlib 0.4.1 then"]),
        (
            {"devices": {"platform": "gpu", "kind": "H100", "count": 1}},
            ["kind H100 then, cpu", "count 1"],
        ),
        ({"devices": "none"}, []),
        ({"git": None, "command": ["other"], "cpu_count": 96}, []),
    ],
)
def test_other_last_bits_are_said(change, said, tmp_path):
    facts = environment()
    (tmp_path / "environment.json").write_text(json.dumps(facts | change))
    found = rounding_changes(tmp_path / "environment.json")
    assert len(found) == len(said)
    for line, words in zip(found, said, strict=True):
        assert words.format(cores=facts["usable_cpu_count"]) in line


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff"])
def test_an_environment_that_is_not_there_says_nothing(content, tmp_path):
    if content is not None:
        (tmp_path / "environment.json").write_bytes(content)
    assert rounding_changes(tmp_path / "environment.json") == []


def test_cores_are_those_that_xla_may_use(monkeypatch):
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    assert environment()["usable_cpu_count"] == len(os.sched_getaffinity(0))
    monkeypatch.setenv("NPROC", "3")
    assert environment()["usable_cpu_count"] == 3
    monkeypatch.setenv("PJRT_NPROC", "5")
    assert environment()["usable_cpu_count"] == 5
    np.testing.assert_equal(environment()["cpu_count"], os.cpu_count())
