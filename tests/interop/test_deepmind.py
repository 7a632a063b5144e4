"""DeepMind's checkpoints give DeepMind's own numbers, at every size, from both networks; what differs is said."""

import pickle
from functools import cache, partial

import jax
import numpy as np
import pytest
from deepmind_files import SIZES, TINY, arrays, encoder_of, learner_of, normalised, pickles
from weight_samples import assert_identical

import interop
from byol_jax import Variables, checkpoint, encoder_variables
from interop.learners.fitting import PaddingWarning
from interop.learners.reading import read_weights
from tests.parity.trajectory import QUICK, blank

BOTH = pytest.mark.parametrize("name", TINY)
TOLERANCE = 1e-4
"""The fixtures' own; measured on a CPU: 4.6e-6 (tiny18) and 2.3e-5 (tiny50) at most."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepmind")
    for name, content in pickles().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def state_of(folder):
    """A checkpoint's state by name, from today's pickle; warnings are errors."""
    return cache(
        lambda name: interop.load_byol_checkpoint(
            folder / name / "pretrain.pkl", like=blank(learner_of(name)), encoder=encoder_of(name)
        )
    )


def outputs(encoder, learner, state, images):
    """Everything that DeepMind's functions gave, in evaluation mode, under its names."""
    online, _ = learner.online_apply(state.online, normalised(images), train=False)
    found = {"prediction": online.prediction}
    for which in ("online", "target"):
        front = "" if which == "online" else "target_"
        variables = encoder_variables(state, which)
        logits, _ = encoder.apply(variables, normalised(images), train=False, hidden_layer=-1)
        found |= {f"{front}embedding": learner.embed(state, images, which=which), f"{front}logits": logits}
        found[f"{front}projection"] = learner.project(state, images, which=which)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tiny18", SIZES[0]),
        *[pytest.param("tiny18", size, marks=pytest.mark.slow) for size in SIZES[1:]],
        pytest.param("tiny50", SIZES[0], marks=pytest.mark.slow),
    ],
)
def test_the_original_codes_outputs_are_reproduced(name, size, state_of):
    check_outputs(name, size, state_of)


@pytest.mark.long
def test_the_original_codes_outputs_are_reproduced_at_each_size(state_of, share, figure):
    cases = share([(name, size) for name in reversed(list(TINY)) for size in SIZES])
    for case in cases:
        check_outputs(*case, state_of)
    figure("DeepMind's tiny networks at every size", cases=len(cases), result=f"outputs within {TOLERANCE:.0e}")


def check_outputs(name, size, state_of):
    images = jax.numpy.asarray(arrays("images")[f"images_{size}"])
    learner = learner_of(name, image_size=images.shape[1:3])
    got = jax.jit(partial(outputs, encoder_of(name), learner), compiler_options=QUICK)(state_of(name), images)
    off = {what: np.max(np.abs(array - arrays(name)[f"{what}_{size}"])) for what, array in got.items()}
    assert len(off) == 7
    assert max(off.values()) <= TOLERANCE, off


@pytest.mark.slow
@BOTH
def test_pickles_of_2020_and_of_today_give_the_same_state(name, folder, state_of):
    state, like = state_of(name), blank(learner_of(name), step=7)
    old = interop.load_byol_checkpoint(
        folder / name / "pretrain_2020.pkl", like=like, source="deepmind", encoder=encoder_of(name)
    )
    assert_identical(leaves(old), leaves(state))
    assert int(old.step) == int(like.step) == 7
    assert_identical({"key": jax.random.key_data(old.key)}, {"key": jax.random.key_data(like.key)})


def leaves(state):
    networks = {"online": state.online, "target": state.target}
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(networks)}


def test_the_average_is_taken_and_counters_are_kept(folder, state_of):
    """`hidden`, not yet debiased after 8 views, would be wrong by a factor of 1 - 0.9⁸."""
    state = state_of("tiny18")
    tree = read_weights(folder / "tiny18/pretrain.pkl")[1].arrays
    root = "online_state/projector/batch_norm/~"
    stats = state.online.stats["projector"]["1"]
    np.testing.assert_array_equal(stats["mean"], tree[f"{root}/mean_ema/average"][0])
    np.testing.assert_array_equal(stats["var"], tree[f"{root}/var_ema/average"][0])
    np.testing.assert_allclose(stats["var"] * (1 - 0.9**8), tree[f"{root}/var_ema/hidden"][0], rtol=1e-5)
    assert int(stats["num_batches_tracked"]) == 8
    assert not state.online.params["projector"]["3"]["bias"].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny18", pytest.param("tiny50", marks=pytest.mark.slow)])
def test_another_padding_is_said_with_its_size(name, folder, state_of):
    """The same leaves in a network that pads as torchvision's: exact at 65 pixels only, as the message says."""
    learner = learner_of(name, padding="torch")
    with pytest.warns(PaddingWarning, match=r"padding \(SAME\).*0\.56 at 64 pixels.*none at 65") as caught:
        state = interop.load_byol_checkpoint(
            folder / name / "pretrain.pkl", like=blank(learner), encoder=encoder_of(name, padding="torch")
        )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert_identical(leaves(state), leaves(state_of(name)))
    for size in ("64", "65"):
        images, expected = arrays("images")[f"images_{size}"], arrays(name)[f"embedding_{size}"]
        learner = learner_of(name, padding="torch", image_size=int(size))
        got = jax.jit(learner.embed, compiler_options=QUICK)(state, images)
        off = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert off < 1e-5 if size == "65" else 0.05 < off < 1


@pytest.mark.parametrize("padding", ["same", "torch"])
def test_without_the_encoder_one_sentence_is_true_of_both_paddings(padding, folder, state_of):
    like = blank(learner_of("tiny18", padding=padding))
    with pytest.warns(PaddingWarning, match=r"agree only if the network pads so.*encoder= .* settles it") as caught:
        state = interop.load_byol_checkpoint(folder / "tiny18/pretrain.pkl", like=like)
    assert (len(caught), caught[0].filename) == (1, __file__)
    assert_identical(leaves(state), leaves(state_of("tiny18")))


@pytest.mark.slow
def test_states_of_earlier_releases_go_on(state_of, tmp_path):
    """Their `stats` told of padding="same" by a node without leaves."""
    learner, state = learner_of("tiny18"), state_of("tiny18")
    mark = {"padding": {"same": {}}}

    def earlier(network):
        return Variables(network.params, network.stats | {"encoder": network.stats["encoder"] | mark})

    old = state.replace(online=earlier(state.online), target=earlier(state.target))
    old = old.replace(online=pickle.loads(pickle.dumps(jax.device_get(old.online))))
    after, _ = jax.eval_shape(learner.step, old, arrays("images")["images_64"])
    assert jax.tree.structure(after) == jax.tree.structure(old)
    checkpoint.save(tmp_path, old, position={"step": 0})
    for like in (state, old):
        restored, _ = checkpoint.restore(tmp_path, like=like)
        assert_identical(leaves(restored), leaves(state))
        assert jax.tree.structure(restored) == jax.tree.structure(like)
    again = interop.load_byol_checkpoint(
        read_weights(pickled(tmp_path))[1].arrays, like=old, encoder=encoder_of("tiny18")
    )
    assert_identical(leaves(again), leaves(state))


def pickled(folder):
    (folder / "x.pkl").write_bytes(pickles()["tiny18/pretrain.pkl"])
    return folder / "x.pkl"
