"""The words that everything else uses: what a network is, what a learner is, what a training state holds.

Only shapes of things; nothing is computed here.
"""

from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import numpy as np

__all__ = ["Encoder", "EncoderFacts", "Images", "LossAux", "Outputs", "PyTree", "TrainState", "Variables"]

PyTree = Any

Images = jax.Array | np.ndarray
"""A batch [N, H, W, C], channels last."""


class Variables(NamedTuple):
    """A network's numbers.

    Attributes:
        params: pytree of floating arrays that training changes through gradients.
        stats: pytree of everything else that the network keeps (batch-norm statistics and other buffers).
    """

    params: PyTree
    stats: PyTree


class EncoderInit(Protocol):
    def __call__(self, key: Any, image_shape: tuple[int, ...]) -> Variables: ...


class EncoderApply(Protocol):
    def __call__(
        self,
        variables: Variables,
        images: Any,
        *,
        train: bool,
        hidden_layer: str | int,
        key: Any = None,
        axis_name: str | None = None,
    ) -> tuple[Any, PyTree]: ...


class HiddenLayers(Protocol):
    def __call__(self, variables: Variables | None = None) -> tuple[str, ...]: ...


class EncoderFacts(NamedTuple):
    """What is known of a network beyond its functions; static, no part of any state.

    Attributes:
        padding: how its strided layers pad: "torch", or "same", TensorFlow's rule. None where that isn't known.
        traced: what `interop` keeps of a network that was traced from a torch module: its graphs and the names of its
            state dict. None for any other network.
        remat: whether it computes activations again for its gradient, as `nets.with_remat` makes it.
        unflattened: of a network whose `apply` flattens its hidden outputs, [N, C·H·W], an `apply` that gives them with
            their axes: channels last, but of a traced network torch's. Only its shapes are asked for
            (`Learner.feature_map`). None: `apply` itself does.
    """

    padding: str | None = None
    traced: Any = None
    remat: bool = False
    unflattened: EncoderApply | None = None


class Encoder(NamedTuple):
    """Any image network as three pure functions, and what is known of it beyond them.

    Attributes:
        init: `init(key, image_shape) -> Variables`. `image_shape` is one image's, `(H, W, C)`. An imported network
            returns its imported weights whatever the key.
        apply: `apply(variables, images, *, train, hidden_layer, key=None, axis_name=None) -> (features, new_stats)`.
            `images` is `[N, H, W, C]`. `hidden_layer` is a dotted name, or -1 for the network's output. `key` drives
            dropout and stochastic depth: drawing with p > 0 and no key is a ValueError. `axis_name` averages
            batch-norm statistics over that mapped axis. In evaluation `new_stats` equals `variables.stats`.
        hidden_layers: `hidden_layers(variables=None) -> tuple[str, ...]`: dotted names in definition order; those
            without a dot are the top-level children. Empty where the network names nothing.
        facts: what else is known; by default nothing. `encoder._replace(...)` keeps it.
    """

    init: EncoderInit
    apply: EncoderApply
    hidden_layers: HiddenLayers
    facts: EncoderFacts = EncoderFacts()


class Outputs(NamedTuple):
    """What one forward pass gives. `features` [N, D]; `projection` [N, P]; `prediction` [N, P], None for a target."""

    features: Any
    projection: Any
    prediction: Any


class LossAux(NamedTuple):
    """What the loss function returns beside the loss.

    Attributes:
        online_stats, target_stats: the statistics after this step's forward passes; the target's `{}` without momentum.
        outputs: the online network's `Outputs` for both views, alternating: rows 2i and 2i+1 are image i's two views.
        metrics: flat dict of scalars.
    """

    online_stats: PyTree
    target_stats: PyTree
    outputs: Outputs
    metrics: dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """All that training carries from step to step; a pytree of arrays only.

    Attributes:
        step: int32 scalar, the number of calls of `Learner.step`, those that weren't finite included.
        key: typed PRNG key, never changed: every random number of step k comes from `fold_in(key, k)`.
        online: `params` with the top-level keys `encoder, projector, predictor`, `stats` with the same.
        target: `params` and `stats` with `encoder, projector`; `Variables({}, {})` without momentum.
        opt_state: the optimiser's state, for the parameters that the loss depends on.
    """

    step: jax.Array
    key: jax.Array
    online: Variables
    target: Variables
    opt_state: PyTree
