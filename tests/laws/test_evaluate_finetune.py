"""Fine-tuning: torch's network under torch's optimiser ends at the same weights; subsets of labels; laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byol_jax
from byol_jax import ConfigurationError, DataError, augment
from byol_jax.data.order import epoch_order
from byol_jax.evaluate import finetune, label_subset
from byol_jax.evaluate.linear import validation_rows

ENCODER = byol_jax.nets.small_cnn((4, 6), num_classes=None)
SMALL = {"image_size": 12, "num_channels": 1, "hidden_layer": -1, "projection_size": 4, "projection_hidden_size": 4}


def learner_of(**options):
    return byol_jax.make_learner(ENCODER, **SMALL, **options)


LEARNER = learner_of()


def two_kinds(seed, count=24, classes=3):
    """Noise of three brightnesses that overlap: images [N, 12, 12, 1] uint8, labels [N]."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    noise = random.integers(0, 120, (count, 12, 12, 1))
    return (noise + 40 * labels[:, None, None, None]).astype(np.uint8), labels


TRAIN, TEST = two_kinds(0), two_kinds(1, 15)


@pytest.mark.slow
def test_the_network_ends_where_torchs_does():
    """In float64 with the same batches: outputs of the network and of its running statistics, to 1e-9."""
    torch = pytest.importorskip("torch")
    from byol_jax.nets.cnn import torch_expression
    from interop import to_torch_state_dict

    rate, epochs, batch = 0.05, 3, 8
    with jax.enable_x64(True):
        learner = learner_of(dtype=jnp.float64)
        state = learner.init(jax.random.key(3))
        options = {"learning_rates": [rate], "epochs": epochs, "batch_size": batch}
        result = finetune(learner, state, *TRAIN, *TEST, **options)
        after = byol_jax.TrainState(
            state.step,
            state.key,
            byol_jax.Variables(
                state.online.params | {"encoder": result.variables.params},
                state.online.stats | {"encoder": result.variables.stats},
            ),
            state.target,
            state.opt_state,
        )
        logits = np.asarray(learner.embed(after, TEST[0])) @ result.weights + result.bias
        start = to_torch_state_dict(byol_jax.encoder_variables(state))
    network = eval(torch_expression((4, 6), 1, None, 12), {"nn": torch.nn}).double()
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in start.items()}, strict=True)
    head = torch.nn.Linear(result.weights.shape[0], 3, dtype=torch.float64)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    both = torch.nn.Sequential(network, head).train()
    optimizer = torch.optim.SGD(both.parameters(), lr=rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 3)
    images, labels = torch.from_numpy(TRAIN[0]).permute(0, 3, 1, 2).double() / 255, torch.from_numpy(TRAIN[1])
    for epoch in range(epochs):
        order = epoch_order(0, epoch, 24)
        for step in range(3):
            rows = order[8 * step : 8 * step + 8]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(both(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        expected = both.eval()(torch.from_numpy(TEST[0]).permute(0, 3, 1, 2).double() / 255).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(result.predictions, expected.argmax(1))
    assert result.accuracy == np.mean(expected.argmax(1) == TEST[1])
    assert (result.epochs, result.steps, result.batch_size, result.validation_accuracy) == (3, 9, 8, None)


@pytest.mark.slow
def test_a_rate_is_chosen_on_held_out_labels_and_the_state_stays():
    state, said, train = LEARNER.init(jax.random.key(0)), [], two_kinds(2, 60)
    before = jax.tree.map(np.array, state.online)
    options = {"label_fraction": 0.75, "epochs": 8, "batch_size": 6, "seed": 2}
    rates = (1e-6, 0.05)
    result = finetune(
        LEARNER, state, *train, *TEST, learning_rates=rates, progress=lambda *done: said.append(done), **options
    )
    jax.tree.map(np.testing.assert_array_equal, state.online, before)
    labelled = label_subset(train[1], fraction=0.75, seed=2)
    np.testing.assert_array_equal(result.labelled, labelled)
    held_out = validation_rows(train[1][labelled], fraction=0.2, seed=2)
    left, fitted = labelled[held_out], labelled[~held_out]
    scores = [
        finetune(
            LEARNER, state, *(part[fitted] for part in train), *(part[left] for part in train),
            learning_rates=[rate], **options | {"label_fraction": 1.0},
        ).accuracy
        for rate in rates
    ]  # fmt: skip
    assert scores[0] != scores[1]
    assert result.learning_rate == rates[int(np.argmax(scores))]
    assert result.validation_accuracy == pytest.approx(max(scores))
    alone = finetune(LEARNER, state, *train, *TEST, learning_rates=[result.learning_rate], **options)
    np.testing.assert_allclose(result.weights, alone.weights, atol=1e-6)
    assert said[-1][0] == said[-1][1] == len(said) == 2 * 8 * (len(fitted) // 6) + 8 * (len(labelled) // 6)


@pytest.mark.slow
def test_it_learns_what_it_is_shown_and_augments_by_the_seed():
    state = LEARNER.init(jax.random.key(0))
    options = {"learning_rates": [0.05], "epochs": 12, "batch_size": 8}
    train, test = two_kinds(2, 60), two_kinds(3, 60)
    assert finetune(LEARNER, state, *train, *test, **options).accuracy > 0.8
    augmented = [
        finetune(LEARNER, state, *train, *test, **options, augment_fn=augment.crop_and_flip(12), seed=seed).weights
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(augmented[0], augmented[1])
    assert np.abs(augmented[0] - augmented[2]).max() > 1e-3


def test_a_subset_has_each_class_s_share_and_at_least_one():
    labels = np.repeat([5, 1, 9], [200, 30, 2])
    few, more = (label_subset(labels, fraction=fraction, seed=4) for fraction in (0.01, 0.1))
    assert [int(np.sum(labels[few] == label)) for label in (5, 1, 9)] == [2, 1, 1]
    assert [int(np.sum(labels[more] == label)) for label in (5, 1, 9)] == [20, 3, 1]
    assert set(few) < set(more)
    assert not np.array_equal(more, label_subset(labels, fraction=0.1, seed=5))
    np.testing.assert_array_equal(label_subset(labels, fraction=1.0, seed=4), np.arange(232))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"learning_rates": []}, ConfigurationError, r"learning_rates=\(\): expected one or more"),
        ({"label_fraction": 0.0}, ConfigurationError, r"label_fraction=0.0: expected a number above 0, at most 1"),
        ({"label_fraction": 0.1}, DataError, r"validation_fraction=0.2 of 3 training rows leaves none"),
        ({"epochs": 0}, ConfigurationError, r"epochs=0"),
        ({"batch_size": 1}, ConfigurationError, r"batch_size=1: expected at least 2"),
        ({"validation_fraction": 0.0}, ConfigurationError, r"validation_fraction=0.0"),
        ({"which": "other"}, ConfigurationError, r"which='other'"),
        ({"train_labels": np.zeros(24, int)}, DataError, r"one class only"),
        ({"train_labels": np.zeros(23, int)}, DataError, r"train_labels has 23 entries for 24 images"),
        ({"test_labels": np.zeros(15)}, DataError, r"test_labels has shape \(15,\) and dtype float64"),
        ({"train_images": TRAIN[0][:, :9]}, ConfigurationError, r"images of shape \(9, 12, 1\)"),
        ({"learner": learner_of(axis_name="devices")}, ConfigurationError, r"without axis_name='devices'"),
        ({"learning_rates": [1e30]}, DataError, r"no fit stayed finite at learning rates \(1e\+30,\)"),
    ],
)
def test_bad_input_is_one_line(change, error, words):
    data = dict(zip(("train_images", "train_labels", "test_images", "test_labels"), (*TRAIN, *TEST), strict=True))
    options = {"learner": LEARNER, "state": LEARNER.init(jax.random.key(0)), "epochs": 2} | data
    with pytest.raises(error, match=words) as raised:
        finetune(**options | change)
    assert "\n" not in str(raised.value)
