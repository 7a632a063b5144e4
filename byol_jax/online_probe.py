"""A linear classifier that is trained beside BYOL, by the same step, on labels that BYOL itself never sees.

A function from a learner to a learner. The classifier's gradient ends at the features, so its accuracy is a running
measure of them and no part of what they learn. DeepMind's code trains one so; byol-jax train --probe measures from
outside instead (runs/probe.py).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byol_jax.byol import Learner
from byol_jax.errors import ConfigurationError
from byol_jax.ops.axis import mean_over
from byol_jax.optim import init_optimizer, updates_for
from byol_jax.optimizer_checks import check_optimizer
from byol_jax.settings import Settings, check_sizes
from byol_jax.tree import copy_leaves
from byol_jax.types import Images, LossAux, TrainState, Variables

__all__ = ["with_online_probe"]

CLASSIFIER = "classifier"
"""Its name among `online.params`, beside encoder, projector and predictor."""

REST = "learner"
"""In the optimiser's state, what all but the classifier has; as without a probe."""

DRAW = np.uint32(2**32 - 3)
"""Folded into the key of `init` for the classifier, so that everything else is drawn as without it."""


def with_online_probe(learner: Learner, num_classes: int) -> Learner:
    """A learner whose step also trains a linear classifier on the representation, with the gradient stopped there.

        probe_loss = mean over n of  cross_entropy(stop_gradient(features₁) · kernel + bias, labels)

    `features₁` are those of view 1, in training mode. A batch is then `(images, labels)`, or a dict of "images" and
    "labels"; labels are [N], integers in [0, num_classes), spread over devices as the images are. A label outside makes
    the step one that isn't finite, which changes nothing and is counted in `nonfinite`.

    Encoder, heads, target and statistics are what they are without it, and so is the metric `loss`: bit for bit op by
    op, to rounding where two programs are compiled. The optimiser is applied to the classifier by itself, with a state
    of its own. `grad_norm` and `param_norm` count the classifier too.
    Metrics more: `probe_loss` and `probe_accuracy`, top-1 in [0, 1], of the whole batch before the update.

    The classifier is `state.online.params["classifier"]`: "kernel" [D, num_classes], "bias" [num_classes]. States are
    saved and restored as any; one without a classifier doesn't fit. `accumulate` comes after it, not before.

    Args:
        learner: made by `make_learner`; its loss may be replaced, its step not.
        num_classes: at least 2.

    Raises:
        ConfigurationError: fewer than 2 classes, or the learner's step is replaced already. When a step is traced: a
            batch of another kind, or labels that aren't integers [N].

    Example:
        >>> import byol_jax
        >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn(), image_size=16, num_channels=1,
        ...                                 projection_size=8, projection_hidden_size=16)
        >>> learner = byol_jax.with_online_probe(learner, num_classes=3)
        >>> batch = jnp.zeros((4, 16, 16, 1)), jnp.array([0, 1, 2, 0])
        >>> state, metrics = jax.jit(learner.step)(learner.init(jax.random.key(0)), batch)
        >>> state.online.params["classifier"]["bias"].shape, round(float(metrics["probe_loss"]), 1) > 0
        ((3,), True)

    Source: google-deepmind/deepmind-research, `byol/`: view 1, the same optimiser, kernel from a truncated normal of
    1/sqrt(D), bias 0. There one loss of two parts; the gradients are the same.
    """
    [num_classes] = check_sizes(of="with_online_probe", least=2, num_classes=num_classes)
    if learner.replacements.step is not None:
        raise ConfigurationError(
            "with_online_probe: the learner's step is replaced already (by accumulate, perhaps) and would train no"
            " classifier: add the probe first"
        )
    s = learner.settings
    abstract = jax.eval_shape(lambda: _init_classifier(s, num_classes, jax.random.key(0)))
    check_optimizer(s.optimizer, abstract, abstract, axis_name=s.axis_name)

    def init(key: jax.Array) -> TrainState:
        state, classifier = learner.init(key), _init_classifier(s, num_classes, key)
        own = copy_leaves(init_optimizer(s.optimizer, classifier))
        online = Variables(state.online.params | classifier, state.online.stats)
        return TrainState(state.step, state.key, online, state.target, {REST: state.opt_state, CLASSIFIER: own})

    def loss(params: Any, state: TrainState, batch: Any, key: jax.Array) -> tuple[jax.Array, LossAux]:
        images, labels = _images_and_labels(batch)
        value, aux = learner.loss(params, state, images, key)
        both_views = lax.optimization_barrier(lax.stop_gradient(aux.outputs.features))  # [2N, D], rows alternate
        features = both_views[::2]  # [N, D], view 1's
        losses, right = _classify(params[CLASSIFIER], features, labels)  # [N] each
        own = jnp.mean(losses)
        told = mean_over(lax.stop_gradient((own, jnp.mean(right))), s.axis_name)
        metrics = aux.metrics | dict(zip(("probe_loss", "probe_accuracy"), told, strict=True))
        # The gradient of both and the number of one: `loss`, and what the optimiser is told, stay BYOL's.
        return value + (own - lax.stop_gradient(own)), aux._replace(metrics=metrics)

    evaluation_params = None if s.evaluation_params is None else _evaluate_apart(s.evaluation_params)
    settings = replace(s, optimizer=_optimize_apart(s.optimizer), evaluation_params=evaluation_params)
    return replace(learner, settings=settings).replace(init=init, loss=loss)


def _init_classifier(s: Settings, num_classes: int, key: jax.Array) -> dict[str, Any]:
    shape, key = (s.feature_size, num_classes), jax.random.fold_in(key, DRAW)
    normal = jax.random.truncated_normal(key, -2, 2, shape, s.storage_dtype)
    kernel, bias = normal / s.feature_size**0.5, jnp.zeros(num_classes, s.storage_dtype)
    return {CLASSIFIER: {"kernel": kernel, "bias": bias}}


def _classify(classifier: Any, features: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each image, and 1 where its label has the largest logit; [N] each, in the dtype of features."""
    logits = features @ classifier["kernel"] + classifier["bias"]  # [N, K]
    if labels.shape != features.shape[:1]:
        raise ConfigurationError(
            f"with_online_probe: labels of shape {labels.shape} for {len(features)} images: expected [{len(features)}]"
        )
    known = (labels >= 0) & (labels < logits.shape[1])
    classes = jnp.where(known, labels, 0).astype(jnp.int32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=1)[:, 0]  # [N]
    right = (jnp.argmax(logits, axis=1).astype(jnp.int32) == classes).astype(logits.dtype)
    return jnp.where(known, -chosen, jnp.nan), right


def _images_and_labels(batch: Any) -> tuple[Images, jax.Array]:
    if isinstance(batch, dict) and set(batch) == {"images", "labels"}:
        images, labels = batch["images"], batch["labels"]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        images, labels = batch
    else:
        held = f"a dict of {', '.join(map(str, batch))}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
        raise ConfigurationError(
            f"with_online_probe: a batch that is {held}: expected (images, labels), or a dict of images and labels"
        )
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ConfigurationError(
            f"with_online_probe: labels of shape {labels.shape} and dtype {labels.dtype}: expected [N] integers"
        )
    return images, labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def _divide(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the learner has, and the classifier alone."""
    rest = {name: part for name, part in tree.items() if name != CLASSIFIER}
    return {REST: rest, CLASSIFIER: {CLASSIFIER: tree[CLASSIFIER]}}


def _optimize_apart(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` twice, a state each: what it computes of all gradients together, a norm to clip by, isn't shared."""

    def init(params: Any) -> dict[str, Any]:
        return {name: init_optimizer(optimizer, part) for name, part in _divide(params).items()}

    def update(gradient: Any, opt_state: Any, params: Any, *, value: jax.Array) -> tuple[dict[str, Any], Any]:
        gradients, parts, updates, states = _divide(gradient), _divide(params), {}, {}
        for name in parts:
            new, states[name] = updates_for(optimizer, gradients[name], opt_state[name], parts[name], value=value)
            updates |= new
        return updates, states

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _evaluate_apart(evaluation_params: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def evaluate(opt_state: Any, params: Any) -> dict[str, Any]:
        parts = _divide(params)
        return evaluation_params(opt_state[REST], parts[REST]) | evaluation_params(
            opt_state[CLASSIFIER], parts[CLASSIFIER]
        )

    return evaluate
