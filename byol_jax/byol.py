"""BYOL on one page: two views, an online network that predicts a slow copy of itself, and nothing else.

    views        v₁, v₂ = augment(image)                     two random views of every image
    online       p = predictor(projector(encoder(v)))        trained by gradients
    target       z = projector(encoder(v))                   never trained
    loss         ‖p̂₁ - ẑ₂‖² + ‖p̂₂ - ẑ₁‖²                     directions only; ^ is scaling to length one
    update       online ← optimiser;  target ← decay · target + (1 - decay) · online

Source: Grill et al., "Bootstrap your own latent", arXiv:2006.07733. Defaults compute what byol-pytorch 0.9.1 computes
with its simplicial embeddings off; docs/parity.md lists every difference. Everything here is pure and may be put under
`jit`, `pmap`, `shard_map`, `vmap` or `grad`. How the arguments are checked is in settings.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byol_jax.ema import ema_update
from byol_jax.errors import ConfigurationError
from byol_jax.loss import normalized_mse
from byol_jax.metrics import feature_std, global_norm, mean_over, stays_finite
from byol_jax.ops.rows import cond_in_rows
from byol_jax.optim import drop, fill
from byol_jax.settings import Settings, foreign, resolve, select_features
from byol_jax.tree import cast, fresh
from byol_jax.types import Encoder, Learner, LossAux, Outputs, TrainState, Variables
from byol_jax.views import dropout_key, network_input, two_views

__all__ = ["encoder_variables", "make_learner"]

ADAM = optax.adam(3e-4)
"""The default optimiser: the one in byol-pytorch's own example."""


def make_learner(
    encoder: Encoder,
    *,
    image_size: int | Sequence[int],
    hidden_layer: str | int = -2,
    projection_size: int = 256,
    projection_hidden_size: int = 4096,
    prediction_hidden_size: int | None = None,
    moving_average_decay: float | Callable = 0.99,
    augment_fn: Callable | None = None,
    augment_fn2: Callable | None = None,
    normalize: Any = "auto",
    use_momentum: bool = True,
    simplicial_embeddings: bool = False,
    sync_batchnorm: bool | None = None,
    views: str = "concatenated",
    num_channels: int | None = 3,
    optimizer: optax.GradientTransformation = ADAM,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> Learner:
    """BYOL around `encoder`. Every argument is checked here, abstractly, before any device work.

    Args:
        encoder: the network to pre-train.
        image_size: one side, (H, W), or a whole input shape for other data (then `augment_fn` is required).
        hidden_layer: where the representation is taken: dotted name, index into the top-level children, -1 the output.
        projection_size: P, width of projection and prediction.
        projection_hidden_size: hidden width of the projector.
        prediction_hidden_size: hidden width of the predictor; None: the projector's.
        moving_average_decay: the target's decay in [0, 1], or a schedule step → decay.
        augment_fn: `(key, image) -> image` for one float image [H, W, C] in [0, 1]; default `augment.simclr`.
        augment_fn2: the second view's; default the first with another key.
        normalize: (mean, std) after augmentation; None; "auto": ImageNet's with the default augmentation on 3 channels.
        use_momentum: False is SimSiam: the target is the online network itself, without gradient.
        simplicial_embeddings: byol-pytorch 0.9.1's default projector (32 simplices of 8, temperature 0.1).
        sync_batchnorm: average batch-norm statistics over `axis_name`; None: where there is one.
        views: "concatenated": batch norm sees both views together; "separate": view 1, then view 2.
        num_channels: C; None: `image_size` is a whole input shape.
        optimizer: any optax transformation; it sees only parameters that the loss depends on, None in others' place.
        axis_name: the mapped axis of `pmap` or `shard_map` that the batch is spread over.
        dtype: compute dtype; parameters, statistics and loss stay in promote(float32, dtype).

    Returns:
        `Learner` of pure functions, documented below: init, step, loss, online_apply, target_apply, embed, project.

    Raises:
        ConfigurationError: a ValueError; an argument is wrong, or the encoder disagrees with image size or channels.
        HiddenLayerNotFoundError: no such layer; the message lists those that exist.

    Example:
        >>> import jax, byol_jax
        >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn(), image_size=16, num_channels=1,
        ...                                 projection_size=8, projection_hidden_size=16)
        >>> state = learner.init(jax.random.key(0))
        >>> state, metrics = jax.jit(learner.step, donate_argnums=0)(state, jax.numpy.zeros((4, 16, 16, 1)))
        >>> int(state.step)
        1
    """
    options = {name: value for name, value in locals().items() if name != "encoder"}
    settings = resolve(encoder, **options)
    functions = (init, step, loss, online_apply, target_apply, embed, project)
    return Learner(*(partial(function, settings) for function in functions))


def init(s: Settings, key: jax.Array) -> TrainState:
    """A fresh state from a typed key. The target starts as a copy; no buffer is shared with anything."""
    encoder_key, projector_key, predictor_key, run_key = jax.random.split(key, 4)
    with foreign():
        encoder = s.encoder.init(encoder_key, s.image_shape)
    projector = s.projector.init(projector_key, s.feature_size, s.storage_dtype)
    predictor = s.predictor.init(predictor_key, s.projection_size, s.storage_dtype)
    parts = {"encoder": encoder, "projector": projector, "predictor": predictor}
    params, stats = ({name: part[i] for name, part in parts.items()} for i in range(2))
    online = cast(fresh(Variables(params, stats)), s.storage_dtype)  # fresh first: an encoder's 0 becomes an array
    target = Variables({}, {})
    if s.use_momentum:
        target = fresh(Variables(*map(_without_predictor, online)))
    with foreign():
        opt_state = s.optimizer.init(_trained(s, online.params))
    return TrainState(
        step=jnp.zeros((), jnp.int32), key=run_key, online=online, target=target, opt_state=fresh(opt_state)
    )


def step(s: Settings, state: TrainState, images: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from a batch [N, H, W, C], uint8 or floating in [0, 1]; under a mapped axis, a device's part of it.

    A step whose loss, gradient or statistics aren't finite changes nothing but the counter. Returns the new state and
    float32 scalars: loss, grad_norm, param_norm, decay, feature_std, nonfinite; the whole batch's, on all devices.
    """
    key = jax.random.fold_in(state.key, state.step)
    params = state.online.params
    if s.axis_name is not None:  # each device's own gradient, to be averaged once: see docs/decisions
        params = lax.pcast(params, s.axis_name, to="varying")
    (value, aux), gradient = jax.value_and_grad(partial(loss, s), has_aux=True)(params, state, images, key)
    value, gradient = mean_over((value, _trained(s, gradient)), s.axis_name)

    decay = s.decay
    if callable(decay):
        with foreign():
            decay = decay(state.step)

    def update() -> tuple[Variables, Variables, Any]:
        trained = _trained(s, state.online.params)
        with foreign():
            updates, opt_state = s.optimizer.update(gradient, state.opt_state, trained)
            online = fill(optax.apply_updates(trained, updates), state.online.params)
        target = ema_update(state.target.params, _without_predictor(online), decay) if s.use_momentum else {}
        return Variables(online, online_stats), Variables(target, target_stats), opt_state

    def leave() -> tuple[Variables, Variables, Any]:
        return state.online, state.target, state.opt_state

    online_stats, target_stats = mean_over((aux.online_stats, aux.target_stats), s.axis_name)
    grad_norm = global_norm(gradient)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    finite &= stays_finite((state.online.stats, state.target.stats), (online_stats, target_stats))  # 1e19² overflows
    online, target, opt_state = cond_in_rows(finite, update, leave)
    metrics = aux.metrics | {
        "loss": value,
        "grad_norm": grad_norm,
        "param_norm": global_norm(online.params),
        "decay": jnp.asarray(decay if s.use_momentum else 0.0),
        "nonfinite": 1 - finite.astype(jnp.float32),
    }
    metrics = {name: number.astype(jnp.float32) for name, number in metrics.items()}
    return TrainState(state.step + 1, state.key, online, target, opt_state), metrics


def loss(s: Settings, params: Any, state: TrainState, images: jax.Array, key: jax.Array) -> tuple[jax.Array, LossAux]:
    """BYOL's loss of raw images [N, H, W, C] at `params`, as of `state`; `key` is the step's.

        mean over n of  normalized_mse(p₁, z₂) + normalized_mse(p₂, z₁),  in [0, 8], about 4 at the start

    Under a mapped axis it is the mean over this device's images; `aux.metrics` are the whole batch's.
    """
    view1, view2 = two_views(s, images, key)
    online_key, target_key = (jax.random.fold_in(dropout_key(s, key), which) for which in (0, 1))
    online = Variables(params, state.online.stats)
    outputs, online_stats = _both_views(s, online_apply, online, view1, view2, online_key)

    target = state.target if s.use_momentum else Variables(params, online_stats)
    targets, target_stats = _both_views(s, target_apply, target, view1, view2, target_key)
    if not s.use_momentum:  # SimSiam: one network, run twice, so its statistics have moved twice; the predictor's once
        online_stats, target_stats = online_stats | target_stats, {}

    prediction1, prediction2 = _apart(outputs.prediction)  # [N, P] each
    target1, target2 = _apart(lax.stop_gradient(targets.projection))
    value = jnp.mean(normalized_mse(prediction1, target2) + normalized_mse(prediction2, target1))
    spread = feature_std(lax.stop_gradient(outputs.projection), s.axis_name)
    metrics = {"loss": mean_over(lax.stop_gradient(value), s.axis_name), "feature_std": spread}
    return value, LossAux(online_stats, target_stats, outputs, metrics)


def online_apply(s: Settings, variables: Variables, images: jax.Array, *, train: bool, key: jax.Array | None = None):
    """`(Outputs(features [N, D], projection [N, P], prediction [N, P]), new_stats)` of network inputs [N, H, W, C].

    Network inputs are views: augmented and normalised already. `key` drives dropout. In evaluation no axis is used.
    """
    outputs, stats = target_apply(s, variables, images, train=train, key=key)
    predictor = Variables(cast(variables.params["predictor"], s.compute_dtype), variables.stats["predictor"])
    axis_name = s.sync_axis if train else None
    prediction, new = s.predictor.apply(
        predictor, cast(outputs.projection, s.compute_dtype), train=train, axis_name=axis_name
    )
    return outputs._replace(prediction=prediction.astype(s.storage_dtype)), stats | {"predictor": new}


def target_apply(s: Settings, variables: Variables, images: jax.Array, *, train: bool, key: jax.Array | None = None):
    """The same without a predictor: `(Outputs(features, projection, None), new_stats)`."""
    params, stats = variables
    axis_name = s.sync_axis if train else None
    with foreign():
        features, encoder_stats = s.encoder.apply(
            Variables(cast(params["encoder"], s.compute_dtype), stats["encoder"]),
            images.astype(s.compute_dtype),
            train=train,
            hidden_layer=s.hidden_layer,
            key=key,
            axis_name=axis_name,
        )
    features = cast(select_features(features), s.compute_dtype)  # [N, D]
    projector = Variables(cast(params["projector"], s.compute_dtype), stats["projector"])
    projection, projector_stats = s.projector.apply(projector, features, train=train, axis_name=axis_name)
    outputs = Outputs(features.astype(s.storage_dtype), projection.astype(s.storage_dtype), None)
    return outputs, {"encoder": cast(encoder_stats, s.storage_dtype), "projector": projector_stats}


def embed(s: Settings, state: TrainState, images: jax.Array, *, which: str = "online") -> jax.Array:
    """Representations [N, D] of raw images, in evaluation mode; `which` network, "online" or "target"."""
    return _evaluate(s, state, images, which).features


def project(s: Settings, state: TrainState, images: jax.Array, *, which: str = "online") -> jax.Array:
    """Projections [N, P] of raw images, in evaluation mode; `which` network, "online" or "target"."""
    return _evaluate(s, state, images, which).projection


def encoder_variables(state: TrainState, which: str = "online") -> Variables:
    """The encoder's `Variables` alone, of the "online" or the "target" network.

    Raises:
        ConfigurationError: another name, or the target of a learner without momentum, which has none.
    """
    network = _network(state, which)
    return Variables(network.params["encoder"], network.stats["encoder"])


def _both_views(s: Settings, apply: Callable, variables: Variables, view1: jax.Array, view2: jax.Array, key: jax.Array):
    """One network on both views; rows of the outputs alternate: image 0's view 1, its view 2, image 1's view 1, ..."""
    if not s.separate_views:
        return apply(s, variables, _together(view1, view2), train=True, key=key)
    first, stats = apply(s, variables, view1, train=True, key=jax.random.fold_in(key, 1))
    params_and_moved = Variables(variables.params, variables.stats | stats)
    second, stats = apply(s, params_and_moved, view2, train=True, key=jax.random.fold_in(key, 2))
    return jax.tree.map(_together, first, second), stats


def _together(view1: jax.Array, view2: jax.Array) -> jax.Array:
    """[N, ...] twice to [2N, ...], alternating: a batch spread over devices stays where it is (no collectives)."""
    return jnp.stack([view1, view2], axis=1).reshape(-1, *view1.shape[1:])


def _apart(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse: [2N, P] to view 1's and view 2's [N, P]."""
    pairs = rows.reshape(-1, 2, rows.shape[-1])  # [N, 2, P]
    return pairs[:, 0], pairs[:, 1]


def _trained(s: Settings, params: Any) -> Any:
    """The parameters that the loss depends on; None in the others' place, as PyTorch's `grad is None`."""
    return params | {"encoder": drop(params["encoder"], s.trained)}


def _without_predictor(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name != "predictor"}


def _network(state: TrainState, which: str) -> Variables:
    if which not in ("online", "target"):
        raise ConfigurationError(f"which={which!r}: expected 'online' or 'target'")
    network = getattr(state, which)
    if not network.params:
        raise ConfigurationError("which='target': a learner without momentum has no target network; use 'online'")
    return network


def _evaluate(s: Settings, state: TrainState, images: jax.Array, which: str) -> Outputs:
    return target_apply(s, _network(state, which), network_input(s, images), train=False)[0]
