"""Training that starts from a whole learner of another library's, or of its encoder alone."""

import jax
import numpy as np
import optax
import pytest
import torch

import byol_jax
import interop
from byol_jax import make_learner, nets
from byol_jax.errors import StateDictMismatchError
from interop.learners.fitting import own_arrays
from tests.cli.learner_modules import IMPORT, SIZE, arrays, learner, module_of, small_cnn, stripped, write_learners
from tests.interop import plain_learners
from tests.interop.weight_samples import assert_identical
from tests.parity.trajectory import blank


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A working directory with a file of each library's learner."""
    monkeypatch.chdir(tmp_path)
    write_learners(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "library", ["byol-pytorch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lightly", "solo-learn"))]
)
def test_a_learner_starts_as_a_whole_where_it_fits(there, library):
    one = learner(classifier=library == "byol-pytorch")
    state = blank(one, step=3)
    started = interop.open_weights(there / f"{library}.ckpt").start(nets.small_cnn(), state)
    wanted = interop.load_byol_checkpoint(there / f"{library}.ckpt", like=state)
    assert_identical(own_arrays(started), own_arrays(wanted))
    assert int(started.step) == 3
    assert jax.tree.structure(started) == jax.tree.structure(state)


def test_of_other_heads_the_encoder_alone_starts(there):
    path, encoder = there / "byol-pytorch.ckpt", nets.small_cnn()
    state = blank(learner(projection_size=8))
    with pytest.warns(UserWarning, match=r"encoder alone is started from: .*projection_size=16 \(not 8\)") as caught:
        started = interop.open_weights(path).start(encoder, state)
    assert len(caught) == 1
    network = stripped(arrays(module_of("byol-pytorch")), "online_encoder.net.")
    for which in ("online", "target"):
        variables = byol_jax.encoder_variables(started, which)
        assert_identical(interop.to_torch_state_dict(variables), network, ordered=False)
    assert not np.any(own_arrays(started)["online.projector.0.weight"])
    alone = interop.open_weights(path).start_encoder(encoder, state)
    assert_identical(own_arrays(alone), own_arrays(started))


@pytest.mark.slow
def test_a_classifier_of_another_width_stays_the_networks_own(there):
    """A learner's classifier is no part of what it learned."""
    net = plain_learners.resnet()
    torch.save(plain_learners.SoloLearn(net).state_dict(), "x.pt")
    encoder = nets.resnet((1, 1, 1, 1), num_classes=7)
    one = make_learner(encoder, image_size=32, hidden_layer="avgpool", projection_size=8, optimizer=optax.identity())
    with pytest.warns(UserWarning, match="encoder alone"):
        started = interop.open_weights(there / "x.pt").start(encoder, blank(one))
    got = interop.to_torch_state_dict(byol_jax.encoder_variables(started))
    assert got["fc.weight"].shape == (7, 512)
    assert_identical({n: a for n, a in got.items() if not n.startswith("fc.")}, arrays(net), ordered=False)


def test_a_learner_of_another_network_lists_what_differs(there):
    with pytest.raises(StateDictMismatchError, match=r"unexpected: 10\.weight, 10\.bias"):
        interop.open_weights(there / "byol-pytorch.ckpt").start(
            nets.small_cnn(num_classes=None), blank(learner(classifier=False))
        )


@pytest.mark.slow
def test_a_sharded_set_is_one_file_of_weights(call, there):
    """By its folder, its index, or the name that the whole file would have."""
    weights = arrays(small_cnn())
    interop.save_state_dict("whole.safetensors", weights)
    (there / "set").mkdir()
    interop.save_state_dict("set/model.safetensors", weights, max_shard_bytes=50_000)
    np.savez("images.npz", images=np.zeros((2, SIZE, SIZE, 3), np.uint8))
    embed = ["embed", "--network", "small_cnn", "--data", "images.npz", "--overwrite"]
    for number, given in enumerate(
        ("whole.safetensors", "set", "set/model.safetensors", "set/model.safetensors.index.json")
    ):
        for words in (["import", given, *IMPORT, "--out"], ["convert", given], [*embed, "--init-from", given, "--out"]):
            answer = call(*words, f"{words[0]}{number}.{'safetensors' if words[0] == 'import' else 'npz'}")
            assert answer.code == 0, answer.err
    for name in ("import{}.safetensors", "convert{}.npz", "embed{}.npz"):
        first, *others = (interop.load_state_dict(name.format(number)) for number in range(4))
        for other in others:
            assert_identical(other, first, ordered=False)
    (there / "empty").mkdir()
    answer = call(*embed, "--init-from", "empty", "--out", "x.npz")
    assert (answer.code, "'empty' is a folder, a file of weights is wanted" in answer.complaint) == (2, True)


@pytest.mark.slow
def test_training_starts_from_a_learner(call, there):
    """Heads and target included: with a rate of next to nothing only the target moves, a hundredth of the way."""
    np.savez("images.npz", images=np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8))
    words = ["train", "images.npz", "--network", "small_cnn", "--steps", 1, "--batch-size", 8, "--optimizer", "sgd"]
    words += ["--projection-size", 16, "--projection-hidden-size", 24, "--learning-rate", 1e-30, "--augment", "none"]
    answer = call(*words, "--init-from", "byol-pytorch.ckpt", "--out", "run")
    assert answer.code == 0
    assert "warning" not in answer.err
    assert call("export", "run", "--out", "x.npz", "--layout", "byol-pytorch").code == 0
    got, start = interop.load_state_dict("x.npz"), arrays(module_of("byol-pytorch"))
    for name in (name for name in start if not name.endswith(("running_mean", "running_var", "batches_tracked"))):
        online = start[name.replace("target_encoder.", "online_encoder.")]
        np.testing.assert_allclose(got[name], 0.99 * start[name] + 0.01 * online, rtol=1e-5, atol=1e-7)
