"""LARS against hand-computed numbers and brute force in NumPy; and which parameters a function depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import ConfigurationError, lars
from byol_jax.optim import drop, fill, find_dependence

# Constant gradients, weight decay 0.01: (rates, w after each step, change of b at each step), from DeepMind's code
HAND = [
    ((1, 1, 1), [(2.996809, 4.003849), (2.990745, 4.011164), (2.982095, 4.021599)], None),
    (
        (1, 0.1, 0.1),
        [(2.996809, 4.003849), (2.996203, 4.004581), (2.995338, 4.005624)],
        [(-0.1, -0.2), (-0.019, -0.038), (-0.0271, -0.0542)],
    ),
    ((0, 1, 2), None, [(0, 0), (-0.19, -0.38), (-0.542, -1.084)]),
]


def scheduled(rates):
    return lambda step: jnp.asarray(rates, jnp.float32)[step]


def trajectory(transformation, params, gradients):
    state, history = transformation.init(params), [params]
    for gradient in gradients:
        updates, state = jax.jit(transformation.update)(gradient, state, history[-1])
        history.append(optax.apply_updates(history[-1], updates))
    return history


@pytest.mark.parametrize(("rates", "weights", "changes"), HAND)
def test_lars_gives_the_hand_computed_numbers(rates, weights, changes):
    params = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([1.0, -2.0])}
    gradient = {"w": jnp.array([0.6, -0.8]), "b": jnp.array([0.1, 0.2])}
    optimizer = lars(scheduled(rates), weight_decay=0.01, mask={"w": True, "b": False})
    history = trajectory(optimizer, params, [gradient] * 3)
    if weights is not None:
        np.testing.assert_allclose([step["w"] for step in history[1:]], weights, atol=1e-6)
    if changes is not None:
        np.testing.assert_allclose(np.diff([step["b"] for step in history], axis=0), changes, atol=1e-6)


@pytest.mark.parametrize(("weight_decay", "momentum", "trust"), [(0.0, 0.9, 1e-3), (1e-2, 0.9, 1e-3), (0.1, 0.0, 0.02)])
def test_lars_is_brute_force(weight_decay, momentum, trust):
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 2, 4), "fc": (5, 2), "zero": (2, 2), "still": (2, 3), "scale": (4,), "temperature": ()}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params["zero"] = np.zeros((2, 2), np.float32)
    rates = np.array([0.0, 0.5, 2.0, 1.0, 0.1], np.float32)
    gradients = [{n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()} for _ in rates]
    for gradient in gradients:
        gradient["still"] = np.zeros((2, 3), np.float32)
    optimizer = lars(scheduled(rates), weight_decay=weight_decay, momentum=momentum, trust_coefficient=trust)
    actual = trajectory(optimizer, jax.tree.map(jnp.asarray, params), gradients)
    for name in shapes:
        weight, buffer = params[name].astype(np.float64), 0.0
        for step, rate in enumerate(rates):
            direction = gradients[step][name].astype(np.float64)
            if weight.ndim > 1:
                direction = direction + weight_decay * weight
                norms = np.linalg.norm(weight), np.linalg.norm(direction)
                direction = direction * (trust * norms[0] / norms[1] if all(norms) else 1.0)
            buffer = momentum * buffer + direction
            weight = weight - float(rate) * buffer
            np.testing.assert_allclose(actual[step + 1][name], weight, rtol=2e-5, atol=1e-7, err_msg=f"{name} {step}")


def test_lars_equals_optax_for_a_constant_rate_and_not_for_a_changing_one():
    params, gradient = {"w": jnp.ones((3, 2))}, {"w": jnp.arange(6.0).reshape(3, 2)}

    def final(optimizer):
        return trajectory(optimizer, params, [gradient] * 4)[-1]["w"]

    theirs = {"weight_decay": 0.01, "trust_coefficient": 1e-3, "momentum": 0.9}
    np.testing.assert_allclose(final(lars(0.5, weight_decay=0.01)), final(optax.lars(0.5, **theirs)), rtol=1e-6)
    falling = scheduled([1.0, 0.1, 0.1, 0.1])
    assert np.abs(final(lars(falling, weight_decay=0.01)) - final(optax.lars(falling, **theirs))).max() > 1e-4


@pytest.mark.parametrize("mask", [None, {"w": True, "gone": True, "b": False}, {"w": True, "gone": False, "b": False}])
def test_lars_leaves_alone_what_is_dropped(mask):
    params = {"w": jnp.ones((2, 2)), "gone": None, "b": jnp.ones(2)}
    whole = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    actual = trajectory(lars(0.1, weight_decay=0.1, mask=mask), params, [params] * 2)[-1]
    expected = trajectory(lars(0.1, weight_decay=0.1), whole, [whole] * 2)[-1]
    assert actual["gone"] is None
    np.testing.assert_array_equal(actual["w"], expected["w"])
    np.testing.assert_array_equal(actual["b"], expected["b"])


def test_a_mask_may_be_a_function():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    nothing = lars(1.0, weight_decay=0.5, momentum=0.0, mask=lambda tree: jax.tree.map(lambda _: False, tree))
    np.testing.assert_array_equal(trajectory(nothing, params, [params])[-1]["w"], np.zeros((2, 2)))


@pytest.mark.parametrize("wrong", [{"weight_decay": -1}, {"momentum": 1.0}, {"trust_coefficient": 0}])
def test_lars_refuses_nonsense(wrong):
    with pytest.raises(ConfigurationError, match="lars"):
        lars(0.1, **wrong)


def test_drop_and_fill_are_inverse():
    tree = {"a": jnp.ones(2), "b": {"c": jnp.zeros(3), "d": 4}}
    mask = {"a": True, "b": {"c": False, "d": True}}
    dropped = drop(tree, mask)
    assert dropped["b"]["c"] is None
    assert len(jax.tree.leaves(dropped)) == 2
    assert fill(dropped, tree)["b"]["c"] is tree["b"]["c"]
    assert fill({"a": 1, "b": {"c": None, "d": 2}}, tree)["b"]["d"] == 2


# ---- find_dependence: each function uses "used" and not "unused"


@jax.custom_vjp
def product(params, x):
    return x @ params["used"] + x @ params["unused"]


product.defvjp(
    lambda params, x: (product(params, x), (params["used"], x)),
    lambda saved, g: ({"used": saved[1].T @ g, "unused": jnp.zeros_like(saved[0])}, g @ saved[0].T),
)


def simple(params, x):
    return x @ params["used"]


def stopped(params, x):
    return x @ params["used"] + jax.lax.stop_gradient(x @ params["unused"])


def dead_output(params, x):
    kept, _dead = jax.jit(lambda params, x: (x @ params["used"], x @ params["unused"]))(params, x)
    return kept


def through_an_integer(params, x):
    return (x @ params["used"])[:, jnp.argmax(params["unused"].sum(0))]


def loop(params, x):
    def body(carry, _):
        return (jnp.tanh(carry[0] @ params["used"]), carry[1] + params["unused"]), stopped(params, x).sum()

    (kept, _dead), sums = jax.lax.scan(body, (x, params["unused"]), None, length=3)
    return kept.sum() + sums.sum()


def loop_of_products(params, x):
    return jax.lax.scan(lambda carry, _: (product(params, carry), None), x, None, length=3)[0]


def over_layers(params, x):
    return jax.lax.scan(lambda carry, layer: (carry @ layer["used"], None), x, jax.tree.map(lambda p: p[None], params))[
        0
    ]


def branches(params, x):
    return jax.lax.cond(x.sum() > 0, lambda p: stopped(p, x), lambda p: x, params)


def tied(params, x):
    copy = params["used"]
    return x @ jax.lax.stop_gradient(params["used"]) + x @ copy


FUNCTIONS = [
    simple,
    stopped,
    dead_output,
    through_an_integer,
    loop,
    loop_of_products,
    over_layers,
    branches,
    tied,
    product,
]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: getattr(function, "__name__", "product"))
def test_depended_on_finds_what_is_used(function, wrap):
    abstract = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    params = {"used": abstract, "unused": abstract, "count": jax.ShapeDtypeStruct((), jnp.int32)}
    wrapped = wrap(lambda params, x: function({name: params[name] for name in ("used", "unused")}, x))
    found = find_dependence(wrapped, params, jax.ShapeDtypeStruct((2, 4), jnp.float32))
    assert found == {"used": True, "unused": False, "count": False}


def test_depended_on_keeps_a_gradient_that_happens_to_be_zero():
    params = {"dead": jnp.full((3,), -1.0), "other": jnp.ones(3)}
    assert find_dependence(lambda p: jax.nn.relu(p["dead"]), params) == {"dead": True, "other": False}


def test_depended_on_takes_any_tree_and_several_outputs():
    params = ([jnp.ones(2), jnp.ones(2)], None, {"x": jnp.arange(3)})
    assert find_dependence(lambda p, n: {"sum": p[0][1].sum(), "count": p[2]["x"] + n}, params, 1) == (
        [False, True],
        None,
        {"x": False},
    )


@pytest.mark.parametrize("seed", range(8))
def test_what_a_loop_uses_is_the_closure_of_its_wires(seed):
    """A loop of random constants, carries, slices and stacks, each of rank 0 to 2; `wires` says what reads what."""
    rng = np.random.default_rng(seed)
    constants, carries, slices, stacks = rng.integers(0, 4, 4)
    carries = max(carries, 1)
    inputs = constants + carries + slices
    shapes = [(2,) * rank for rank in rng.integers(0, 3, inputs)]
    outputs = shapes[constants : constants + carries] + [(2,) * rank for rank in rng.integers(0, 3, stacks)]
    wires = rng.random((carries + stacks, inputs)) < 0.3
    kept = rng.random(carries + stacks) < 0.5

    def run(params):
        def body(carry, slices):
            values = [jnp.sin(value.sum()) for value in (*params[:constants], *carry, *slices)]
            found = [
                jnp.full(shape, sum((value for value, read in zip(values, row, strict=True) if read), jnp.zeros(())))
                for shape, row in zip(outputs, wires, strict=True)
            ]
            return found[:carries], found[carries:]

        last, stacked = jax.lax.scan(body, params[constants : constants + carries], params[constants + carries :], 3)
        return [value for value, flag in zip([*last, *stacked], kept, strict=True) if flag]

    def param(number, shape):
        return jax.ShapeDtypeStruct((3, *shape) if number >= constants + carries else shape, jnp.float32)

    reads = np.eye(inputs, dtype=int)  # what a value of this round may depend on in a round before it, and itself
    reads[constants : constants + carries] += wires[:carries]
    reached = wires @ np.linalg.matrix_power(reads, inputs) > 0
    found = find_dependence(run, [param(*numbered) for numbered in enumerate(shapes)])
    assert found == reached[kept].any(axis=0).tolist()
