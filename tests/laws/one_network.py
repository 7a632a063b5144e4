"""One small network written as a linen module, an nnx module and three functions, all from the same numbers.

Convolution, batch norm, another convolution that is called twice, dropout, mean, classifier; for images of any size and
number of channels, and for signals. The functions are plain JAX: what the adapters are compared with.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from byol_jax import Encoder, Variables, from_linen, from_nnx, make_learner
from byol_jax.nets.pretrained import with_variables

WIDTH, CLASSES = 4, 7
NAMES = ("stem", "norm", "shared", "drop", "head")
WAYS = ("linen", "nnx", "functions")
QUICKLY = {"xla_backend_optimization_level": 0}
"""A compiler option that shortens the compilation of a step: formulas are compared here, not speed."""


class LinenNet(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        kernel = (3,) * (x.ndim - 2)
        x = nn.Conv(WIDTH, kernel, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        shared = nn.Conv(WIDTH, kernel, name="shared")
        x = nn.relu(shared(nn.relu(shared(x))))
        x = nn.Dropout(self.rate, deterministic=not train, name="drop")(x)
        return nn.Dense(CLASSES, name="head")(x.mean(range(1, x.ndim - 1)))


class NnxNet(nnx.Module):
    def __init__(self, shape, rate=0.0):
        rngs, kernel = nnx.Rngs(0), (3,) * (len(shape) - 1)
        self.stem = nnx.Conv(shape[-1], WIDTH, kernel, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
        self.shared = nnx.Conv(WIDTH, WIDTH, kernel, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = self.drop(nnx.relu(self.shared(nnx.relu(self.shared(x)))))
        return self.head(x.mean(range(1, x.ndim - 1)))


def functions(rate=0.0) -> Encoder:
    def conv(params, x):
        layout = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC")}[x.ndim]
        strides = (1,) * (x.ndim - 2)
        return (
            jax.lax.conv_general_dilated(x, params["kernel"], strides, "SAME", dimension_numbers=layout)
            + (params["bias"])
        )

    def dropout(x, train, key):
        if not train or not rate:
            return x
        if key is None:
            raise ValueError("dropout needs a key: pass key=...")
        return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)

    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        params, old = variables.params, variables.stats["batch_stats"]["norm"]
        x, seen, axes = images, {}, range(images.ndim - 1)
        x = seen["stem"] = conv(params["stem"], x)
        mean, var = (x.mean(axes), x.var(axes)) if train else (old["mean"], old["var"])
        x = (x - mean) / jnp.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
        seen["norm"] = x
        for _ in range(2):
            x = seen["shared"] = conv(params["shared"], jax.nn.relu(x))
        x = seen["drop"] = dropout(jax.nn.relu(x), train, key)
        x = seen["head"] = x.mean(range(1, x.ndim - 1)) @ params["head"]["kernel"] + params["head"]["bias"]
        new = {name: 0.9 * old[name] + 0.1 * now for name, now in (("mean", mean), ("var", var))}
        stats = {"batch_stats": {"norm": new}} if train else variables.stats
        return x if hidden_layer == -1 else seen[hidden_layer], stats

    def init(key, shape):
        return start(shape)

    return Encoder(init, apply, lambda variables=None: NAMES)


def start(shape) -> Variables:
    """The numbers, laid out as Linen does; statistics and scales aren't trivial."""
    random = np.random.default_rng(3)
    kernel = (3,) * (len(shape) - 1)

    def layer(*sizes):
        return {"kernel": 0.4 * random.normal(size=sizes), "bias": 0.1 * random.normal(size=sizes[-1])}

    norm = {"scale": random.uniform(0.5, 1.5, WIDTH), "bias": 0.1 * random.normal(size=WIDTH)}
    running = {"mean": random.normal(size=WIDTH), "var": random.uniform(0.5, 1.5, WIDTH)}
    params = {
        "stem": layer(*kernel, shape[-1], WIDTH),
        "norm": norm,
        "shared": layer(*kernel, WIDTH, WIDTH),
        "head": layer(WIDTH, CLASSES),
    }
    return jax.tree.map(jnp.asarray, Variables(params, {"batch_stats": {"norm": running}}))


def written(way, shape, rate=0.0) -> Encoder:
    """The network, in one of the three WAYS."""
    if way == "functions":
        return functions(rate)
    params, stats = start(shape)
    if way == "linen":
        return with_variables(from_linen(LinenNet(rate)), Variables(params, stats))
    return with_variables(from_nnx(NnxNet(shape, rate)), Variables(params, stats["batch_stats"]))


def unchanged(key, image):
    return image


def flipped(key, image):
    return image[::-1]


def learner_of(encoder, shape, **options):
    """A learner with small heads and fixed views."""
    heads = {"projection_size": 8, "projection_hidden_size": 16}
    whole = {"image_size": shape, "num_channels": None} if len(shape) != 3 else {}
    images = whole or {"image_size": shape[:2], "num_channels": shape[2]}
    return make_learner(encoder, **(heads | {"augment_fn": unchanged, "augment_fn2": flipped} | images | options))


def batches(shape, steps=4, count=8):
    return np.random.default_rng(0).random((steps, count, *shape), np.float32)


def train(encoder, shape, *, steps=4, **options):
    """The state and the metrics of each step, in the layout of the functions."""
    learner = learner_of(encoder, shape, **options)
    state, rows = learner.init(jax.random.key(0)), []
    step = jax.jit(learner.step, compiler_options=QUICKLY)
    for batch in batches(shape, steps):
        state, metrics = step(state, jnp.asarray(batch))
        rows.append(metrics)
    networks = {name: _like_the_functions(getattr(state, name)) for name in ("online", "target")}
    return state.replace(**networks), rows


def _like_the_functions(network: Variables) -> Variables:
    stats = network.stats
    if "norm" in stats.get("encoder", {}):
        stats = stats | {"encoder": {"batch_stats": stats["encoder"]}}
    return Variables(network.params, stats)


def largest_difference(left, right) -> float:
    """Over all floating leaves of two results of `train`, which must have one structure."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating))
