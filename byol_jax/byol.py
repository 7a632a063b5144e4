"""BYOL on one page: two views, an online network that predicts a slow copy of itself, and nothing else.

    def step(online, target, images):
        view1, view2 = augment(images), augment(images)              # two random views of every image
        loss = distance(predict(online(view1)), target(view2)) + distance(predict(online(view2)), target(view1))
        online = optimise(online, gradient(loss))                    # trained by gradients
        target = decay * target + (1 - decay) * online               # never trained: it follows

`online` and `target` are an encoder and a projector each; `distance` is between directions, ‖p/‖p‖ - z/‖z‖‖².

Source: Grill et al., "Bootstrap your own latent", arXiv:2006.07733. Defaults compute what byol-pytorch 0.9.1 computes
with its simplicial embeddings off; docs/parity.md lists every difference. `Learner.step` and `Learner.loss` below are
those four lines. How arguments are checked is in settings.py, what happens to images before a network in views.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byol_jax.ema import ema_update
from byol_jax.errors import ConfigurationError
from byol_jax.loss import normalized_mse
from byol_jax.metrics import feature_std, global_norm, stays_finite
from byol_jax.ops.axis import mean_over, split_gradient
from byol_jax.ops.rows import cond
from byol_jax.optim import apply_gradient, init_optimizer
from byol_jax.settings import Options, Settings
from byol_jax.tree import copy_leaves
from byol_jax.types import Encoder, Images, LossAux, Outputs, TrainState, Variables
from byol_jax.views import dropout_key, network_input, two_views

__all__ = ["Learner", "Replacements", "encoder_variables", "make_learner", "update_state"]

Metrics = dict[str, jax.Array]
"""Float32 scalars by name, on the device."""


class Replacements(NamedTuple):
    """Functions that a learner calls in place of its own methods of the same name; None: its own."""

    init: Callable[[jax.Array], TrainState] | None = None
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]] | None = None
    loss: Callable[[Any, TrainState, Any, jax.Array], tuple[jax.Array, LossAux]] | None = None


OWN_METHODS = Replacements()


@dataclass(frozen=True, eq=False)
class Learner:
    """BYOL around one encoder. Made by `make_learner`.

    Every method is a pure function of its arguments and may be put under `jit`, `pmap`, `shard_map`, `vmap` or `grad`;
    `settings`, which they share, is static. `replace` makes another learner, one that does something more.

    Attributes:
        settings: networks, augmentation, optimiser and all else that `make_learner` was told or found out.
        replacements: the functions that `replace` was given.
    """

    settings: Settings
    replacements: Replacements = OWN_METHODS

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state. The target starts as a copy of the online network; no buffer is shared with anything.

        Args:
            key: `jax.random.key(seed)`; a raw one, `jax.random.PRNGKey(seed)`, is made such. It decides initial
                weights, views and dropout of the whole run.

        Returns:
            `TrainState` of arrays: parameters and statistics in promote(float32, dtype), step 0.

        Raises:
            ConfigurationError: something else than a key.

        Example:
            >>> import byol_jax
            >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn(), image_size=16, num_channels=1,
            ...                                 projection_size=8, projection_hidden_size=16)
            >>> int(learner.init(jax.random.key(0)).step)
            0
        """
        dtype = getattr(key, "dtype", None)
        if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
            raise ConfigurationError(f"init: {key!r} is no key: give jax.random.key(seed)")
        if dtype == jnp.uint32:
            key = jax.random.wrap_key_data(key)
        if self.replacements.init is not None:
            return self.replacements.init(key)
        s = self.settings
        encoder_key, projector_key, predictor_key, run_key = jax.random.split(key, 4)
        parts = {
            "encoder": s.encoder.init(encoder_key),
            "projector": s.projector.init(projector_key),
            "predictor": s.predictor.init(predictor_key),
        }
        online = Variables(
            {name: part.params for name, part in parts.items()}, {name: part.stats for name, part in parts.items()}
        )
        copied = ("encoder", "projector") if s.use_momentum else ()
        target = copy_leaves(Variables(*({name: part[name] for name in copied} for part in online)))
        opt_state = copy_leaves(init_optimizer(s.optimizer, s.select_trained(online.params)))
        return TrainState(jnp.zeros((), jnp.int32), run_key, online, target, opt_state)

    def step(self, state: TrainState, images: Images) -> tuple[TrainState, Metrics]:
        """One update of everything. A step that isn't finite changes nothing but the counter.

        That is a step whose loss, gradient or new statistics hold an infinity or a NaN that wasn't there before.
        `nonfinite` is 1 for it, and also where the new parameters' norm isn't finite; these stay.

        Args:
            state: as `init` or the last step gave it; may be donated.
            images: [N, H, W, C], uint8, uint16 or floating in [0, 1], or of the learner's `value_range`; under a mapped
                axis this device's part of the batch.

        Returns:
            The new state, and float32 scalars: loss, grad_norm, param_norm, decay, feature_std, nonfinite. Both are
            the whole batch's, equal on all devices.

        Raises:
            ConfigurationError: a batch of 1 image, or images of another shape or dtype. When it is traced, not later.

        Example:
            >>> import byol_jax
            >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn(), image_size=16, num_channels=1,
            ...                                 projection_size=8, projection_hidden_size=16)
            >>> step = jax.jit(learner.step, donate_argnums=0)
            >>> state, metrics = step(learner.init(jax.random.key(0)), jnp.zeros((4, 16, 16, 1)))
            >>> int(state.step), sorted(metrics)
            (1, ['decay', 'feature_std', 'grad_norm', 'loss', 'nonfinite', 'param_norm'])
        """
        if self.replacements.step is not None:
            return self.replacements.step(state, images)
        s = self.settings
        key = jax.random.fold_in(state.key, state.step)
        value, gradient, aux = self._gradient(state, images, key)
        return update_state(s, state, value, gradient, aux)

    def loss(self, params: Any, state: TrainState, images: Images, key: jax.Array) -> tuple[jax.Array, LossAux]:
        """BYOL's loss at `params`, symmetric in the two views; what `step` differentiates.

            mean over n of  normalized_mse(p₁, z₂) + normalized_mse(p₂, z₁),  in [0, 8], about 4 at the start

        Args:
            params: as `state.online.params`; encoder, projector and predictor.
            state: everything else that the loss depends on: statistics and the target.
            images: [N, H, W, C], as `step` takes them, not augmented.
            key: the step's, `fold_in(state.key, state.step)`; or for each image its own, [N], where the images are a
                part of the step's (`views.sample_keys`).

        Returns:
            The loss, a scalar in promote(float32, dtype), and `LossAux`. Under a mapped axis the loss is the mean over
            this device's images; `aux.metrics` are the whole batch's.

        Raises:
            ConfigurationError: as `step`.
        """
        if self.replacements.loss is not None:
            return self.replacements.loss(params, state, images, key)
        s = self.settings
        view1, view2 = two_views(s, images, key)  # [N, H, W, C] each
        online_key, target_key = (jax.random.fold_in(dropout_key(s, key), which) for which in (0, 1))
        online = Variables(params, state.online.stats)
        outputs, online_stats = self._both_views(self.online_apply, online, view1, view2, online_key)

        target = state.target if s.use_momentum else Variables(params, online_stats)
        targets, target_stats = self._both_views(self.target_apply, target, view1, view2, target_key)
        if not s.use_momentum:  # SimSiam: one network run twice, so its statistics move twice; the predictor's once
            online_stats, target_stats = online_stats | target_stats, {}

        prediction1, prediction2 = _split(outputs.prediction)  # [N, P] each
        target1, target2 = _split(lax.stop_gradient(targets.projection))  # [N, P] each
        value = jnp.mean(normalized_mse(prediction1, target2) + normalized_mse(prediction2, target1))
        spread = feature_std(lax.stop_gradient(outputs.projection), s.axis_name)
        metrics = {"loss": mean_over(lax.stop_gradient(value), s.axis_name), "feature_std": spread}
        return value, LossAux(online_stats, target_stats, outputs, metrics)

    def online_apply(
        self, variables: Variables, images: Images, *, train: bool, key: jax.Array | None = None
    ) -> tuple[Outputs, Any]:
        """The online network: encoder, projector, predictor.

        Args:
            variables: as `state.online`.
            images: [N, H, W, C], network inputs: augmented and normalised already.
            train: whether batch norm takes the batch's own statistics, over the mapped axis where there is one.
            key: drives dropout and stochastic depth.

        Returns:
            `(Outputs(features [N, D], projection [N, P], prediction [N, P]), new_stats)`, in promote(float32, dtype).

        Raises:
            ValueError: the network draws random numbers and there is no key.
        """
        outputs, stats = self.target_apply(variables, images, train=train, key=key)
        predictor = _part(variables, "predictor")
        prediction, predictor_stats = self.settings.predictor.apply(predictor, outputs.projection, train=train)
        return outputs._replace(prediction=prediction), stats | {"predictor": predictor_stats}

    def target_apply(
        self, variables: Variables, images: Images, *, train: bool, key: jax.Array | None = None
    ) -> tuple[Outputs, Any]:
        """The target network: encoder and projector, `(Outputs(features, projection, None), new_stats)`.

        Arguments and errors are those of `online_apply`; `variables` is as `state.target`.
        """
        s = self.settings
        features, encoder_stats = s.encoder.apply(_part(variables, "encoder"), images, train=train, key=key)  # [N, D]
        projection, projector_stats = s.projector.apply(_part(variables, "projector"), features, train=train)  # [N, P]
        return Outputs(features, projection, None), {"encoder": encoder_stats, "projector": projector_stats}

    def embed(self, state: TrainState, images: Images, *, which: str = "online") -> jax.Array:
        """Representations [N, D] in evaluation mode: what the encoder is trained for.

        Of the online network at the parameters of `evaluation_state`.

        Args:
            images: [N, H, W, C], as `step` takes them, not augmented or normalised.
            which: "online" or "target", the network.

        Raises:
            ConfigurationError: images of another shape or dtype, another `which`, or the target of a learner without
                momentum.
        """
        return self._evaluate(state, images, which).features

    def feature_map(self, state: TrainState, images: Images, *, which: str = "online") -> jax.Array:
        """`embed`'s representations with the axes that the hidden layer gave them, channels last.

            feature maps [N, H, W, C]      tokens of a vision transformer [N, T, D]      else [N, D]

        Tokens are all that the layer gives: in the networks here, and in most, the first is the class token. A traced
        module's map is turned from torch's [N, C, H, W], unless the image's proportions tell that its channels are last
        already (`hidden.feature_layout`). Arguments and errors are those of `embed`.

        Example:
            >>> import byol_jax
            >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn((4, 8)), image_size=16, hidden_layer="5",
            ...                                 projection_size=8, projection_hidden_size=16)
            >>> state = learner.init(jax.random.key(0))
            >>> learner.feature_map(state, jnp.zeros((2, 16, 16, 3))).shape
            (2, 4, 4, 8)
        """
        layout = self.settings.find_layout()
        rows = self.embed(state, images, which=which)
        return rows.reshape(-1, *layout.shape).transpose(0, *(1 + axis for axis in layout.axes))

    def project(self, state: TrainState, images: Images, *, which: str = "online") -> jax.Array:
        """Projections [N, P] in evaluation mode; arguments and errors are those of `embed`."""
        return self._evaluate(state, images, which).projection

    def evaluation_state(self, state: TrainState) -> TrainState:
        """`state` with the online parameters that are evaluated: `evaluation_params(opt_state, params)`, where given.

        `embed` and `project` take them by themselves, and `pretrain` when it exports. Not a state to go on from.

        Example:
            >>> import byol_jax
            >>> from optax import contrib
            >>> learner = byol_jax.make_learner(
            ...     byol_jax.nets.small_cnn((4,)), image_size=16, projection_size=8, projection_hidden_size=16,
            ...     optimizer=contrib.schedule_free_sgd(), evaluation_params=contrib.schedule_free_eval_params)
            >>> state = jax.eval_shape(learner.init, jax.random.key(0))
            >>> evaluated = jax.eval_shape(learner.evaluation_state, state)
            >>> sorted(byol_jax.encoder_variables(evaluated).params)
            ['0', '1', '4']
        """
        params = self.settings.select_evaluated(state.opt_state, state.online.params)
        online = Variables(params, state.online.stats)
        return TrainState(state.step, state.key, online, state.target, state.opt_state)

    def replace(
        self,
        *,
        init: Callable[[jax.Array], TrainState] | None = None,
        step: Callable[[TrainState, Any], tuple[TrainState, Metrics]] | None = None,
        loss: Callable[[Any, TrainState, Any, jax.Array], tuple[jax.Array, LossAux]] | None = None,
    ) -> "Learner":
        """A learner that calls the functions given in place of its own; each takes what the method takes.

        So a new behaviour is a function from a learner to a learner. A learner's own `step` differentiates whatever
        its `loss` is; one that was replaced goes on with the loss that it was made with, so the loss comes first. What
        `init` adds to `online.params` beside the three parts is trained with them.

        Raises:
            ConfigurationError: another loss for a learner whose step is replaced already, which wouldn't train by it.

        Example:
            >>> def with_image_count(learner):
            ...     def step(state, images):
            ...         state, metrics = learner.step(state, images)
            ...         return state, metrics | {"images": jnp.asarray(len(images), jnp.float32)}
            ...     return learner.replace(step=step)
        """
        own = self.replacements
        if loss is not None and step is None and own.step is not None:
            raise ConfigurationError(
                "replace(loss=...): the learner's step is replaced already and would train by the loss that it was made"
                " with: replace the loss first, then the step"
            )
        return Learner(self.settings, Replacements(init or own.init, step or own.step, loss or own.loss))

    def _gradient(self, state: TrainState, images: Any, key: jax.Array) -> tuple[jax.Array, Any, LossAux]:
        """The loss, its gradient and what came with it, averaged over the devices; None for what isn't trained."""
        s = self.settings
        params = split_gradient(state.online.params, s.axis_name)
        (value, aux), gradient = jax.value_and_grad(self.loss, has_aux=True)(params, state, images, key)
        value, gradient = mean_over((value, s.select_trained(gradient)), s.axis_name)
        online_stats, target_stats = mean_over((aux.online_stats, aux.target_stats), s.axis_name)
        return value, gradient, aux._replace(online_stats=online_stats, target_stats=target_stats)

    def _both_views(
        self, apply: Callable, variables: Variables, view1: jax.Array, view2: jax.Array, key: jax.Array
    ) -> tuple[Outputs, Any]:
        """One network on both views; rows of the outputs alternate: image 0's view 1, its view 2, image 1's view 1."""
        if not self.settings.separate_views:
            return apply(variables, _alternate(view1, view2), train=True, key=key)
        first, stats = apply(variables, view1, train=True, key=jax.random.fold_in(key, 1))
        after_first = Variables(variables.params, variables.stats | stats)
        second, stats = apply(after_first, view2, train=True, key=jax.random.fold_in(key, 2))
        return jax.tree.map(_alternate, first, second), stats

    def _evaluate(self, state: TrainState, images: Images, which: str) -> Outputs:
        network = _network(self.evaluation_state(state), which)
        return self.target_apply(network, network_input(self.settings, images), train=False)[0]


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
    value_range: tuple[Any, Any] | None = None,
    normalize: Any = "auto",
    use_momentum: bool = True,
    simplicial_embeddings: bool = False,
    sync_batchnorm: bool | None = None,
    views: str = "concatenated",
    num_channels: int | None = 3,
    optimizer: optax.GradientTransformation = ADAM,
    evaluation_params: Callable | None = None,
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
        value_range: (low, high) of raw images, one number or one a channel: they become 0 and 1, linearly, and what
            lies outside is clipped. None: uint8 is divided by 255, uint16 by 65,535, and floats are in [0, 1] already.
        normalize: (mean, std) after augmentation; None; "auto": ImageNet's with the default augmentation on 3 channels.
        use_momentum: False is SimSiam: the target is the online network itself, without gradient.
        simplicial_embeddings: byol-pytorch 0.9.1's default projector (32 simplices of 8, temperature 0.1).
        sync_batchnorm: average batch-norm statistics over `axis_name`; None: where there is one.
        views: "concatenated": batch norm sees both views together; "separate": view 1, then view 2.
        num_channels: C; None: `image_size` is a whole input shape.
        optimizer: an optax transformation that updates at every step. It sees only parameters that the loss depends on,
            None in others' place, and as `value` the loss, where it asks.
        evaluation_params: `(opt_state, params) -> params`, for optimisers that train at one point and evaluate at
            another, `optax.contrib.schedule_free_eval_params`; None in the same places. See `Learner.evaluation_state`.
        axis_name: the mapped axis of `pmap` or `shard_map` that the batch is spread over.
        dtype: compute dtype; parameters, statistics and loss stay in promote(float32, dtype).

    Returns:
        `Learner`, whose methods are pure functions: init, step, loss, online_apply, target_apply, embed, feature_map,
        project.

    Raises:
        ConfigurationError: a ValueError; an argument is wrong, or the encoder disagrees with image size or channels or
            doesn't run in `dtype`, or the optimiser holds updates back (`optax.MultiSteps`) or asks for more than a
            step has (line searches).
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
    options = Options(
        image_size=image_size,
        hidden_layer=hidden_layer,
        projection_size=projection_size,
        projection_hidden_size=projection_hidden_size,
        prediction_hidden_size=prediction_hidden_size,
        moving_average_decay=moving_average_decay,
        augment_fn=augment_fn,
        augment_fn2=augment_fn2,
        value_range=value_range,
        normalize=normalize,
        use_momentum=use_momentum,
        simplicial_embeddings=simplicial_embeddings,
        sync_batchnorm=sync_batchnorm,
        views=views,
        num_channels=num_channels,
        optimizer=optimizer,
        evaluation_params=evaluation_params,
        axis_name=axis_name,
        dtype=dtype,
    )
    return Learner(options.resolve(encoder))


def encoder_variables(state: TrainState, which: str = "online") -> Variables:
    """The encoder's `Variables` alone, of the "online" or the "target" network.

    With `evaluation_params`, give `learner.evaluation_state(state)`.

    Raises:
        ConfigurationError: another name, or the target of a learner without momentum, which has none.
    """
    return _part(_network(state, which), "encoder")


def update_state(
    s: Settings, state: TrainState, value: jax.Array, gradient: Any, aux: LossAux
) -> tuple[TrainState, Metrics]:
    """The end of a step: optimiser, target, statistics, counter; all but the counter as it was where it isn't finite.

    Args:
        value, gradient: the whole batch's, equal on all devices; None in the gradient for what isn't trained.
        aux: the loss's, its statistics equal on all devices; `outputs` isn't used.
    """
    decay = s.decay(state.step)

    def update() -> tuple[Variables, Variables, Any]:
        online, opt_state = apply_gradient(s.optimizer, gradient, state.opt_state, state.online.params, value=value)
        target = ema_update(state.target.params, {name: online[name] for name in state.target.params}, decay)
        return Variables(online, aux.online_stats), Variables(target, aux.target_stats), opt_state

    grad_norm = global_norm(gradient)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    finite &= stays_finite((state.online.stats, state.target.stats), (aux.online_stats, aux.target_stats))
    online, target, opt_state = cond(finite, update, lambda: (state.online, state.target, state.opt_state))
    param_norm = global_norm(online.params)
    metrics = aux.metrics | {
        "loss": value,
        "grad_norm": grad_norm,
        "param_norm": param_norm,
        "decay": jnp.asarray(decay),
        "nonfinite": 1 - (finite & jnp.isfinite(param_norm)).astype(jnp.float32),
    }
    metrics = {name: number.astype(jnp.float32) for name, number in metrics.items()}
    return TrainState(state.step + 1, state.key, online, target, opt_state), metrics


def _part(variables: Variables, name: str) -> Variables:
    """One of the networks that `variables` holds."""
    return Variables(variables.params[name], variables.stats[name])


def _alternate(view1: jax.Array, view2: jax.Array) -> jax.Array:
    """[N, ...] twice to [2N, ...], alternating: a batch spread over devices stays where it is (no collectives)."""
    return jnp.stack([view1, view2], axis=1).reshape(-1, *view1.shape[1:])


def _split(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse: [2N, P] to view 1's and view 2's [N, P]."""
    pairs = rows.reshape(-1, 2, rows.shape[-1])  # [N, 2, P]
    return pairs[:, 0], pairs[:, 1]


def _network(state: TrainState, which: str) -> Variables:
    """The online or the target network's variables."""
    if which not in ("online", "target"):
        raise ConfigurationError(f"which={which!r}: expected 'online' or 'target'")
    network = state.online if which == "online" else state.target
    if not network.params:
        raise ConfigurationError("which='target': a learner without momentum has no target network; use 'online'")
    return network
