"""Every optimiser of optax and optax.contrib, found by introspection, with plain arguments; and a learner around each.

The learner's network is a matrix, so that a step compiles in a moment; its second layer isn't used.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from byol_jax import Encoder, Variables, make_learner
from byol_jax.optim import matrices

SGD = optax.sgd(0.01, momentum=0.9)
PLAIN = {
    **dict.fromkeys(("inner", "optimizer", "base_optimizer", "fast_optimizer", "tx", "args"), SGD),
    **dict.fromkeys(("clipping", "max_delta", "max_norm", "threshold", "l2_norm_clip", "slow_step_size"), 0.5),
    **dict.fromkeys(("max_backtracking_steps", "max_linesearch_steps", "max_consecutive_errors", "sync_period"), 3),
    "adv_optimizer": optax.sgd(0.1),
    "decay": 0.9,
    "eta": 0.01,
    "f": lambda updates, params: updates,
    "freeze_mask": False,
    "gamma": 0.5,
    "inner_factory": optax.adam,
    "learning_rate": 0.01,
    "mask": matrices,
    "measure": optax.tree.norm,
    "measure_name": "norm",
    "measures": {"norm": optax.tree.norm},
    "noise_multiplier": 0.1,
    "param_labels": lambda params: jax.tree.map(lambda leaf: "ab"[jnp.ndim(leaf) > 1], params),
    "seed": 0,
    "should_transform_fn": lambda step, **others: step % 2 == 0,
    "step_size": -0.01,
    "step_size_fn": lambda step: -0.01 / (step + 1),
    "transforms": {"a": SGD, "b": optax.adam(0.01)},
}
"""What a required argument of this name gets."""

ODD = {
    "add_noise": lambda: optax.add_noise(0.01, 0.5, jax.random.key(1)),
    "differentially_private_aggregate": lambda: contrib.differentially_private_aggregate(0.5, 0.1, jax.random.key(1)),
    "named_chain": lambda: optax.named_chain(("first", SGD), ("second", optax.scale(0.5))),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "freeze": lambda: optax.freeze(False),
}
"""Those that plain arguments don't make."""

DEPRECATED = ("inject_stateful_hyperparams", "noisy_sgd", "optimistic_adam", "dpsgd")
"""Their functions warn."""


def optimizers():
    """Names of functions that make a transformation, to functions without arguments that do."""
    found = {}
    for module in (optax, contrib):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            signature = inspect.signature(function)
            if name[0] != "_" and "GradientTransformation" in str(signature.return_annotation):
                found[name] = ODD.get(name, partial(plain, function, signature))
    return {name: make for name, make in sorted(found.items()) if name not in DEPRECATED}


def plain(function, signature):
    """A call with `PLAIN` for what is required, and nothing else."""
    required = [one for one in signature.parameters.values() if one.default is one.empty]
    starred = [PLAIN[one.name] for one in required if one.kind is one.VAR_POSITIONAL]
    return function(*starred, **{one.name: PLAIN[one.name] for one in required if one.kind is not one.VAR_POSITIONAL})


def two_layers():
    """An encoder with layers "first" and "second", both matrices with a bias."""

    def init(key, image_shape):
        del image_shape
        keys = iter(jax.random.split(key, 4))
        layers = {"first": (12, 6), "second": (6, 3)}
        params = {
            name: {"w": jax.random.normal(next(keys), shape), "b": jax.random.normal(next(keys), shape[1:])}
            for name, shape in layers.items()
        }
        return Variables(params, {})

    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        del train, key, axis_name
        x = images.reshape(len(images), -1)
        for name in ("first", "second"):
            x = x @ variables.params[name]["w"] + variables.params[name]["b"]
            if hidden_layer == name:
                break
        return x, variables.stats

    return Encoder(init, apply, lambda variables=None: ("first", "second"))


def learner_with(optimizer, hidden_layer="first", **options):
    """A learner of images [2, 2, 3] without augmentation; parameters of "second" aren't trained."""
    return make_learner(
        two_layers(),
        image_size=2,
        hidden_layer=hidden_layer,
        projection_size=4,
        projection_hidden_size=5,
        optimizer=optimizer,
        **({"augment_fn": lambda key, image: image} | options),
    )
