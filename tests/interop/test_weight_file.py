"""`open_weights`: one object for a file of weights, whoever wrote it; known by its content, read once, read-only."""

import hashlib
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
import torch
from plain_learners import CLASSES, SoloLearn, learner, resnet
from torch import nn
from weight_samples import assert_identical, small_state_dict

import interop
from byol_jax import ConfigurationError, nets, pretrain
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from byol_jax.tree import flatten
from interop.inspect.commands import inspect_file
from interop.learners import checkpoint, solo_learn
from interop.learners.fitting import own_arrays
from interop.learners.library import Library, Origin, match_roots
from interop.weights.transformers import timm_key
from tests.parity.trajectory import blank


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_known_by_its_bytes_whatever_its_name(tmp_path):
    interop.save_state_dict(tmp_path / "a.safetensors", small_state_dict())
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.bin")
    first, second = (interop.open_weights(tmp_path / name) for name in ("a.safetensors", "b.bin"))
    assert first.sha256 == second.sha256 == hash_of(tmp_path / "a.safetensors")
    assert (first.path, first.index_sha256) == (str(tmp_path / "a.safetensors"), None)
    assert interop.open_weights(first) is first


def test_a_sharded_set_is_known_by_its_shards(tmp_path):
    """Neither by the index nor by names; one bit in one shard is another set."""
    values = small_state_dict()
    for folder, name, seed in (("one", "model", 0), ("two", "other", 0), ("three", "model", 1)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / f"{name}.safetensors"
        interop.save_state_dict(path, small_state_dict(seed), max_shard_bytes=300)
    one, index, whole = (
        interop.open_weights(tmp_path / "one" / name)
        for name in (".", "model.safetensors.index.json", "model.safetensors")
    )
    assert_identical(one.network(), values)
    assert one.sha256 == index.sha256 == whole.sha256
    assert one.index_sha256 == hash_of(tmp_path / "one/model.safetensors.index.json")
    assert one.sha256 == interop.open_weights(tmp_path / "two").sha256
    assert one.sha256 != interop.open_weights(tmp_path / "three").sha256
    assert one.index_sha256 == interop.open_weights(tmp_path / "three").index_sha256


def test_a_dict_is_known_by_its_values():
    given = small_state_dict()
    weights = interop.open_weights(given)
    assert weights.path is None
    assert weights.sha256 == interop.open_weights(dict(reversed(given.items()))).sha256
    tensors = {name: torch.from_numpy(array) for name, array in given.items() if name != "fc.bias"}
    assert weights.sha256 == interop.open_weights(tensors | {"fc.bias": given["fc.bias"]}).sha256
    given["fc.weight"] = given["fc.weight"] + 1
    assert weights.sha256 != interop.open_weights(given).sha256


def test_it_cannot_be_changed():
    weights = interop.open_weights(small_state_dict())
    with pytest.raises(AttributeError):
        weights.path = "other"
    with pytest.raises(ValueError, match="read-only"):
        weights.network()["fc.weight"][0] = 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt"])
def test_a_file_is_read_once(ending, tmp_path):
    """What is asked for later comes from the object: the file may be gone by then."""
    encoder = nets.small_cnn((4,), num_classes=3)
    variables = encoder.init(jax.random.key(1), (8, 8, 3))
    interop.save_state_dict(tmp_path / f"x{ending}", interop.encoder_state_dict(encoder, variables))
    weights = interop.open_weights(tmp_path / f"x{ending}")
    (tmp_path / f"x{ending}").unlink()
    got = weights.variables(encoder, like=jax.eval_shape(lambda: encoder.init(jax.random.key(0), (8, 8, 3))))
    assert jax.tree.all(jax.tree.map(lambda one, other: bool((one == other).all()), got, variables))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    small = {"image_size": 8, "projection_size": 4, "projection_hidden_size": 4, "progress": False}
    state = pretrain(encoder, images, out=tmp_path / "run", steps=1, batch_size=8, init_from=weights, **small)
    assert int(state.step) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "classes", [pytest.param(None, marks=pytest.mark.long), CLASSES, pytest.param(7, marks=pytest.mark.long)]
)
def test_variables_of_native_and_traced_networks_are_the_same(classes):
    """A classifier that isn't of the width stays the network's own, in either."""
    net = resnet()
    net.fc = nn.Identity() if classes is None else nn.Linear(512, classes)
    traced = interop.from_torch_module(net, image_size=32, verify=False)
    native = nets.resnet((1, 1, 1, 1), num_classes=classes)
    weights = interop.open_weights(SoloLearn(resnet()).state_dict())
    assert (weights.source, weights.layout) == ("solo_learn", "")
    assert (weights.architecture.features, len(weights.heads["projector"])) == (512, 3)
    found = {}
    for name, encoder in {"traced": traced, "native": native}.items():
        like = encoder.init(jax.random.key(0), (32, 32, 3))
        found[name] = interop.encoder_state_dict(encoder, weights.variables(encoder, like=like))
    body = [{n: a for n, a in arrays.items() if not n.startswith("fc.")} for arrays in found.values()]
    assert_identical(*body, ordered=False)
    if classes == 7:
        np.testing.assert_array_equal(found["traced"]["fc.weight"], net.fc.weight.detach())


ENCODERS = {"vit": partial(nets.vit, 1, width=6, num_heads=2, patch_size=8), "small_cnn": nets.small_cnn}


def filled(encoder, value):
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (16, 16, 3)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)


def teacher_of(encoder):
    """A file of DINO's kind, by timm's names, in which every number of the encoder's is 1."""
    arrays = {timm_key(name): array for name, array in interop.encoder_state_dict(encoder, filled(encoder, 1)).items()}
    teacher = {f"backbone.{name}": array for name, array in arrays.items()} | {"head.mlp.0.weight": np.zeros((2, 2))}
    return {"student": {f"module.{name}": array for name, array in teacher.items()}, "teacher": teacher}


@pytest.mark.parametrize("classes", [None, 7, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_part_of_something_keeps_the_networks_own_classifier(name, classes):
    """Whatever a classifier is called there and here, unless the file has one of that width."""
    file = teacher_of(ENCODERS[name](num_classes=classes))
    encoder = ENCODERS[name](num_classes=3)
    weights = interop.open_weights(file, which_weights="teacher", prefix="backbone")
    got = flatten(weights.variables(encoder, like=filled(encoder, 0)).params)
    heads = {path for path in got if path.startswith(("heads/", "10/"))}
    assert heads
    assert all(np.all(leaf == (0 if path in heads and classes != 3 else 1)) for path, leaf in got.items())


@pytest.mark.parametrize(("classes", "words"), [(None, "num_classes=None makes"), (7, "num_classes=7 makes")])
def test_only_options_that_there_are_are_advised(classes, words):
    theirs, ours = (ENCODERS["vit"](num_classes=number) for number in (classes, 3))
    weights = interop.open_weights(teacher_of(theirs), which_weights="teacher", prefix="backbone")
    like = jax.eval_shape(lambda: ours.init(jax.random.key(0), (16, 16, 3)))
    with pytest.raises(StateDictMismatchError, match=f"only the classifier differs: {words}") as caught:
        weights.variables(ours, like=like)
    whole = interop.open_weights(weights.network() | {"other": np.zeros(1)})
    with pytest.raises(StateDictMismatchError, match="1 unexpected: other") as another:
        whole.variables(theirs, like=filled(theirs, 0))
    assert not any(words in f"{caught.value}{another.value}" for words in ("head=", "strict=", "looks like"))


def test_a_dict_without_a_tensor_is_refused():
    with pytest.raises(CheckpointFormatError, match="holds no tensor"):
        interop.open_weights({})


MADE_UP = {"net": "backbone", "net_ema": "momentum_backbone", "proj": "projector", "proj_ema": "momentum_projector"}
MADE_UP |= {"pred": "predictor"}


def renamed(state_dict, roots):
    names = match_roots(state_dict, {f"{old}.": f"{new}." for old, new in roots.items()})
    return {new: state_dict[old] for old, new in names.items()}


def made_up(state_dict):
    """solo-learn's names as the made-up library has them."""
    return renamed(state_dict, {theirs: ours for ours, theirs in MADE_UP.items()})


def made_up_origin(keys):
    theirs = renamed({key: key for key in keys}, MADE_UP)
    return Origin("made up 1.0", {theirs[name]: ours for name, ours in solo_learn.origin(theirs).names.items()}, {})


MADE_UP_LIBRARY = Library(
    layouts=("made-up-1",),
    recognises=lambda keys: any(key.startswith("pred.") for key in keys),
    origin=made_up_origin,
    from_state_dict=lambda given, **options: solo_learn.from_state_dict(renamed(given, MADE_UP), **options),
    to_state_dict=lambda state, *, layout, where: made_up(solo_learn.to_state_dict(state, layout="", where=where)),
)
"""A fifth library, as a file of its own in `learners` would make it: solo-learn's networks under other names."""


@pytest.mark.slow
def test_a_fifth_library_is_its_file_and_a_line_in_sources(monkeypatch, tmp_path):
    """Inspected, opened, loaded, saved and started from like the four."""
    monkeypatch.setitem(checkpoint.SOURCES, "made_up", MADE_UP_LIBRARY)
    written = SoloLearn(resnet()).state_dict()
    given = {f"learner.{name}": tensor.numpy() for name, tensor in made_up(written).items()}
    interop.save_state_dict(tmp_path / "x.npz", given)
    seen = inspect_file(tmp_path / "x.npz")
    assert (seen["kind"], seen["source"], seen["owner"]) == ("BYOL learner, made up 1.0", "made up 1.0", "learner.")
    assert (seen["target"], seen["architecture"]["features"], seen["would_not_convert"]) == (True, 512, [])
    one = learner(stem="imagenet")
    encoder = nets.resnet((1, 1, 1, 1), num_classes=None)
    state = blank(one)
    weights = interop.open_weights(tmp_path / "x.npz")
    assert (weights.title, weights.source) == ("made up 1.0", "made_up")
    wanted = own_arrays(interop.load_byol_checkpoint(written, like=state))
    for loaded in (
        interop.load_byol_checkpoint(tmp_path / "x.npz", like=state),
        interop.load_byol_checkpoint(tmp_path / "x.npz", like=state, source="made-up"),
        weights.start(encoder, state),
    ):
        assert_identical(own_arrays(loaded), wanted)
    interop.save_byol_checkpoint(tmp_path / "y.npz", loaded, layout="made_up_1")
    bare = {name.removeprefix("learner."): array for name, array in given.items()}
    assert_identical(interop.load_state_dict(tmp_path / "y.npz"), bare, ordered=False)


@pytest.mark.slow
def test_a_run_goes_on_with_a_renamed_file_but_not_with_another(tmp_path):
    """Also where an earlier release knew a sharded set by its index alone."""
    encoder = nets.small_cnn((4,), num_classes=3)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    for number, name in enumerate(("a", "b", "other")):
        variables = encoder.init(jax.random.key(number // 2), (8, 8, 3))
        arrays = interop.encoder_state_dict(encoder, variables)
        interop.save_state_dict(tmp_path / f"{name}.safetensors", arrays)
        (tmp_path / name).mkdir()
        interop.save_state_dict(tmp_path / name / "model.safetensors", arrays, max_shard_bytes=200)

    def run(out, start, **options):
        small = {"image_size": 8, "projection_size": 4, "projection_hidden_size": 4, "progress": False, "steps": 1}
        pretrain(encoder, images, out=tmp_path / out, batch_size=8, init_from=tmp_path / start, **small, **options)

    for out, start, renamed, other in (
        ("run", "a.safetensors", "b.safetensors", "other.safetensors"),
        ("sharded", "a", "b", "other"),
    ):
        run(out, start)
        run(out, renamed, resume=True)
        with pytest.raises(ConfigurationError, match="init_from/sha256: stored"):
            run(out, other, resume=True)
    config = tmp_path / "sharded/config.json"
    weights = interop.open_weights(tmp_path / "a")
    content = json.loads(config.read_text())
    content["init_from"] = {"file": "model.safetensors.index.json", "sha256": weights.index_sha256}
    config.write_text(json.dumps(content))
    run("sharded", "a/model.safetensors.index.json", resume=True)
