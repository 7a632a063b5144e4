"""Linear evaluation by SGD: torch's own optimiser gives the same weights, and the choice is made on held-out rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import ConfigurationError, DataError
from byol_jax.data.order import epoch_order
from byol_jax.evaluate import linear_sgd
from byol_jax.evaluate.linear import validation_rows
from byol_jax.evaluate.linear_sgd import train_classifiers
from byol_jax.evaluate.sgd import LinearClassifier, hits, top_classes
from tests.laws.test_evaluate_knn import blobs

torch = pytest.importorskip("torch")

PROBLEM = {"train": 90, "test": 60, "dimensions": 7, "classes": 6}
QUICK = {"epochs": 4, "batch_size": 32}


def torch_classifier(x, labels, rows, rate, decay, *, epochs, batch_size, batch_norm, classes):
    """torch's Linear under torch's SGD and CosineAnnealingLR, in float64, on the same batches; from zeros."""
    layers = [torch.nn.Linear(x.shape[1], classes, dtype=torch.float64)]
    torch.nn.init.zeros_(layers[0].weight)
    torch.nn.init.zeros_(layers[0].bias)
    if batch_norm:
        layers.insert(0, torch.nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6, momentum=1.0, dtype=torch.float64))
    network = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    steps = len(rows) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    x, labels = torch.from_numpy(x.astype(np.float64)), torch.from_numpy(labels.astype(np.int64))
    for epoch in range(epochs):
        order = rows[epoch_order(0, epoch, len(rows))]
        for step in range(steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    if batch_norm:
        network(x[rows])  # with momentum 1 its statistics become those of these rows
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_weights_are_those_of_torchs_sgd(batch_norm):
    """Both of a sweep; rows that are left out leave no trace."""
    x, labels, test, _ = blobs(0, **PROBLEM)
    pairs, rows = [(0.4, 0.0), (0.05, 1e-2)], np.flatnonzero(np.arange(90) % 10 > 0)
    options = {"epochs": 4, "batch_size": 32, "batch_norm": batch_norm}
    with jax.enable_x64(True):
        features = jnp.asarray(x, jnp.float64)
        found = train_classifiers(features, labels, rows, pairs, class_count=6, seed=0, **options)
        logits = np.einsum("nd,sdk->snk", test.astype(np.float64), found.weights) + np.asarray(found.bias)[:, None]
    assert found.weights.dtype == np.float64
    for ours, (rate, decay) in zip(logits, pairs, strict=True):
        network = torch_classifier(x, labels, rows, rate, decay, classes=6, **options)
        with torch.no_grad():
            theirs = network(torch.from_numpy(test.astype(np.float64))).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
        if not batch_norm:
            member = pairs.index((rate, decay))
            np.testing.assert_allclose(found.weights[member], network[0].weight.detach().T, rtol=0, atol=1e-9)


def test_the_pair_is_chosen_on_the_held_out_rows_and_trains_again_on_all():
    train, labels, test, test_labels = blobs(1, **PROBLEM | {"train": 150})
    rates, decays = (1e-4, 0.5, 100.0), (0.0, 3.0)
    result = linear_sgd(train, labels, test, test_labels, learning_rates=rates, weight_decays=decays, seed=3, **QUICK)
    held_out = validation_rows(labels, fraction=0.2, seed=3)
    pairs = [(rate, decay) for rate in rates for decay in decays]
    options = {"class_count": 6, "seed": 3, **QUICK}
    swept = train_classifiers(jnp.asarray(train), labels, np.flatnonzero(~held_out), pairs, **options)
    logits = np.einsum("nd,sdk->snk", train[held_out], swept.weights) + np.asarray(swept.bias)[:, None]
    scores = np.mean(logits.argmax(-1) == labels[held_out], axis=1)
    assert len(set(scores)) > 1
    assert (result.learning_rate, result.weight_decay) == pairs[int(scores.argmax())]
    assert result.validation_accuracy == pytest.approx(scores.max())
    again = train_classifiers(jnp.asarray(train), labels, np.arange(150), [pairs[int(scores.argmax())]], **options)
    np.testing.assert_allclose(result.weights, again.weights[0], atol=1e-6)
    logits = test @ result.weights + result.bias
    np.testing.assert_array_equal(result.predictions, logits.argmax(1))
    assert result.accuracy == np.mean(logits.argmax(1) == test_labels)
    assert (result.epochs, result.steps, result.batch_size) == (4, 16, 32)


def test_top5_is_scikit_learns():
    from sklearn.metrics import top_k_accuracy_score

    train, labels, test, test_labels = blobs(2, **PROBLEM)
    result = linear_sgd(train, labels, test, test_labels, learning_rates=(0.1,), **QUICK)
    logits = test @ result.weights + result.bias
    assert result.top5_accuracy == top_k_accuracy_score(test_labels, logits, k=5, labels=range(6))
    assert result.accuracy < result.top5_accuracy < 1
    np.testing.assert_array_equal(result.top5[:, 0], result.predictions)


def test_batch_norm_takes_the_scale_away():
    train, labels, test, test_labels = blobs(3, **PROBLEM)
    scale, offset = np.float32(10.0) ** np.arange(-1, 6, dtype=np.float32), np.float32(3)
    options = {"batch_norm": True, "learning_rates": (0.1,), **QUICK}
    plain = linear_sgd(train, labels, test, test_labels, **options)
    scaled = linear_sgd((train + offset) * scale, labels, (test + offset) * scale, test_labels, **options)
    np.testing.assert_allclose(scaled.weights * scale[:, None], plain.weights, atol=2e-3)
    without = linear_sgd((train + offset) * scale, labels, test, test_labels, learning_rates=(0.1,), **QUICK)
    assert np.abs(without.weights * scale[:, None] - plain.weights).max() > 1


def test_labels_need_not_be_dense_and_chunks_change_nothing(monkeypatch):
    from byol_jax.evaluate import sgd

    train, labels, test, test_labels = blobs(4, **PROBLEM)
    plain = linear_sgd(train, labels, test, test_labels, learning_rates=(0.1,), **QUICK)
    monkeypatch.setattr(sgd, "LOGITS", 6 * 25)
    sparse = linear_sgd(train, labels * 7, test, test_labels * 7, learning_rates=(0.1,), **QUICK)
    np.testing.assert_array_equal(sparse.top5, plain.top5 * 7)


def test_what_is_not_finite_is_never_chosen():
    train, labels, test, test_labels = blobs(5, **PROBLEM)
    huge = train * np.float32(1e18)
    rates = (1e30, 1e-37)
    result = linear_sgd(huge, labels, test * np.float32(1e18), test_labels, learning_rates=rates, **QUICK)
    assert result.learning_rate == 1e-37
    with pytest.raises(DataError, match=r"no classifier stayed finite at learning rates \(1e\+30,\): scale"):
        linear_sgd(huge, labels, test, test_labels, learning_rates=rates[:1], **QUICK)
    nothing = LinearClassifier(jnp.full((1, 2), jnp.nan), jnp.zeros(2))
    assert not hits(top_classes(nothing, jnp.ones((2, 1))), np.array([0, 1])).any()


def test_progress_counts_the_epochs_of_both_fits():
    said = []
    linear_sgd(*blobs(6, **PROBLEM), learning_rates=(0.1,), progress=lambda *done: said.append(done), **QUICK)
    assert said == [(epoch, 8) for epoch in range(1, 9)]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"learning_rates": ()}, ConfigurationError, r"learning_rates=\(\): expected one or more"),
        ({"learning_rates": (0.1, 0.0)}, ConfigurationError, r"learning_rates=\(0.1, 0.0\)"),
        ({"weight_decays": (-1.0,)}, ConfigurationError, r"weight_decays=\(-1.0,\)"),
        ({"weight_decays": ()}, ConfigurationError, r"weight_decays=\(\)"),
        ({"epochs": 0}, ConfigurationError, r"epochs=0: expected at least 1"),
        ({"batch_size": 0}, ConfigurationError, r"batch_size=0: expected at least 1"),
        ({"batch_size": 1, "batch_norm": True}, ConfigurationError, r"batch_size=1: expected at least 2"),
        ({"validation_fraction": 1.0}, ConfigurationError, r"validation_fraction=1.0"),
        ({1: np.zeros(120, int)}, DataError, r"one class only"),
        ({0: np.full((120, 9), np.nan, np.float32)}, DataError, r"train_features has NaN"),
    ],
)
def test_bad_input_is_one_line(change, error, words):
    data = list(blobs(0))
    options = {name: value for name, value in change.items() if isinstance(name, str)}
    for position in change.keys() - options.keys():
        data[position] = change[position]
    with pytest.raises(error, match=words) as raised:
        linear_sgd(*data, **options)
    assert "\n" not in str(raised.value)
