"""Every optimiser of optax: it is trained with as optax itself would, or refused by name when the learner is made.

Optimisers are found by introspection; the reference is optax on the same gradients and the same losses, in a tree that
has no parameters which the loss doesn't depend on, where a learner's has None.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optax import contrib
from optimizer_cases import SGD, learner_with, optimizers

import interop
from byol_jax import ConfigurationError, LossAux, Outputs, encoder_variables, make_learner, nets, pretrain
from byol_jax.metrics import feature_std
from byol_jax.runs.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:optimizer. schedule_free")  # one test says when it comes

REFUSED = {
    "apply_every": "accumulates gradients",
    "apply_if_finite": "skips updates",
    "conditionally_mask": "skips updates",
    "differentially_private_aggregate": "batch dimension",
    "galore": "can't take None .*encoder/second/b",
    "lbfgs": "ScaleByZoomLinesearchState.*'value_fn'",
    "lookahead": "LookaheadParams",
    "measure_with_ema": "other shapes than the parameters",
    "sam": "adversarial",
    "scale_by_backtracking_linesearch": "'value_fn'",
    "scale_by_galore": "can't take None",
    "scale_by_muon": "MuonState: scale_by_muon",  # it takes matrices alone
    "scale_by_zoom_linesearch": "'value_fn'",
    "sophia": "hutchinson.*obj_fn",
}
"""By name: what the refusal says."""

IMAGES = np.random.default_rng(0).random((4, 2, 2, 3), np.float32)


def quadratic(params, step):
    """A loss with another gradient for every leaf and step; positive, and cheap."""
    leaves = jax.tree.leaves(params)
    terms = [((leaf - jnp.sin(1.0 + step + n)) ** 2).sum() for n, leaf in enumerate(leaves)]
    return sum(terms) / len(terms)


def cheap(learner):
    """The learner with `quadratic` of what is trained in place of BYOL's loss; its step is its own."""

    def loss(params, state, images, key):
        del images, key
        value = quadratic(learner.settings.select_trained(params), state.step.astype(jnp.float32))
        metrics = {"loss": value, "feature_std": jnp.ones(())}
        return value, LossAux(state.online.stats, state.target.stats, Outputs(None, None, None), metrics)

    return learner.replace(loss=loss)


def reference(optimizer, params, steps):
    """Optax alone, on the same losses: parameters and optimiser's state after `steps`."""
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def update(params, opt_state, step):
        value, gradient = jax.value_and_grad(quadratic)(params, step)
        updates, opt_state = optimizer.update(gradient, opt_state, params, value=value, grad=gradient)
        return optax.apply_updates(params, updates), opt_state

    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(params)
        for step in range(steps):
            params, opt_state = update(params, opt_state, float(step))
    return params, opt_state


def assert_leaves_close(actual, expected):
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def check_trains_as_optax(optimizer, steps=3):
    learner = cheap(learner_with(optimizer))
    state = start = learner.init(jax.random.key(0))
    step = jax.jit(learner.step)
    for _ in range(steps):
        state, metrics = step(state, IMAGES)
        assert metrics["nonfinite"] == 0
    first = start.online.params | {"encoder": {"first": start.online.params["encoder"]["first"]}}
    params, opt_state = reference(optimizer, first, steps)
    encoder = state.online.params["encoder"]
    assert_leaves_close(state.online.params | {"encoder": {"first": encoder["first"]}}, params)
    assert_leaves_close(state.opt_state, opt_state)
    assert int(state.step) == steps
    for ours, theirs in zip(
        jax.tree.leaves(encoder["second"]), jax.tree.leaves(start.online.params["encoder"]["second"]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


ALL = optimizers()


def test_there_are_many():
    assert len(ALL) > 100
    assert set(REFUSED) <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_each_is_taken_or_refused_by_name(name):
    if name not in REFUSED:
        assert callable(learner_with(ALL[name]()).step)
        return
    with pytest.raises(ConfigurationError, match=f"^optimizer.*{REFUSED[name]}") as refusal:
        learner_with(ALL[name]())
    assert "\n" not in str(refusal.value)
    assert ": give" in str(refusal.value) or ": take" in str(refusal.value) or "can't be used" in str(refusal.value)


@pytest.mark.long
def test_each_trains_as_optax(share, figure):
    taken = share([name for name in ALL if name not in REFUSED])
    for name in taken:
        check_trains_as_optax(ALL[name]())
    figure(
        "optimisers of optax and optax.contrib that a learner takes, three steps beside optax's own",
        cases=len(taken),
        result="parameters and optimiser's state agree to 2e-5",
    )


@pytest.mark.slow
def test_those_that_ask_for_the_loss_train_as_optax():
    check_trains_as_optax(optax.chain(contrib.momo(), contrib.reduce_on_plateau(patience=1)))


# nested in anything


def inject(inner):
    return optax.inject_hyperparams(lambda scale: optax.chain(inner, optax.scale(scale)))(scale=0.5)


def label(params):
    """ "a" for vectors: what `optax.flatten` makes of a tree is one."""
    return jax.tree.map(lambda leaf: "ab"[jnp.ndim(leaf) > 1], params)


HOLDERS = {
    "MultiSteps": lambda: optax.MultiSteps(SGD, 2).gradient_transformation(),
    "apply_every": lambda: optax.apply_every(2),
    "apply_if_finite": lambda: optax.apply_if_finite(SGD, 3),
    "conditionally_mask": lambda: optax.conditionally_mask(SGD, lambda step: step % 2 == 0),
    "sam": lambda: contrib.sam(SGD, SGD),
    "accumulate_avg_updates": lambda: optax.experimental.aggregating.accumulate_avg_updates(2),
}
UPDATING = {
    "adam": lambda: optax.adam(0.01),
    "clip": lambda: optax.clip_by_global_norm(1.0),
    "lars": lambda: optax.lars(0.1),
    "plateau": lambda: contrib.reduce_on_plateau(patience=1),
    "polyak": lambda: optax.polyak_sgd(),
    "lbfgs": lambda: optax.lbfgs(0.01, linesearch=None),
}
WRAPPERS = {
    "chain": lambda inner: optax.chain(optax.clip(1.0), inner),
    "conditionally_transform": lambda inner: optax.conditionally_transform(inner, lambda step: step % 2 == 0),
    "flatten": optax.flatten,
    "inject_hyperparams": inject,
    "masked": lambda inner: optax.masked(inner, lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) == 1, params)),
    "named_chain": lambda inner: optax.named_chain(("first", inner), ("second", optax.scale(0.5))),
    "partition": lambda inner: optax.partition({"a": inner, "b": optax.adam(0.1)}, label),
    "schedule_free": lambda inner: contrib.schedule_free(inner, 0.1),
    "with_extra_args_support": optax.with_extra_args_support,
}


def nest(name, wrappers):
    inner = (HOLDERS | UPDATING)[name]()
    for wrapper in wrappers:
        inner = WRAPPERS[wrapper](inner)
    return inner


NESTED = given(st.sampled_from([*HOLDERS, *UPDATING]), st.lists(st.sampled_from(list(WRAPPERS)), max_size=4))


def check_verdict(name, wrappers):
    """Refused, by its own name, exactly if it holds updates back."""
    optimizer = nest(name, wrappers)
    if name in UPDATING:
        return learner_with(optimizer)
    with pytest.raises(ConfigurationError, match=f"{name}.* (in its state at|accumulates|skips|goes to)"):
        learner_with(optimizer)
    return None


@settings(max_examples=25)
@NESTED
def test_what_holds_updates_back_is_found_in_any_wrapper(name, wrappers):
    check_verdict(name, wrappers)


@pytest.mark.long
def test_random_optimizers_train_as_optax(share, figure):
    trained, cases = [], share(200)

    @settings(max_examples=cases, derandomize=True, database=None)
    @NESTED
    def check(name, wrappers):
        check_verdict(name, wrappers)
        trained.append((name, tuple(wrappers))) if name in UPDATING else None

    check()
    chosen = sorted(set(trained))[:: max(1, len(set(trained)) * 20 // cases)]
    for name, wrappers in chosen:
        check_trains_as_optax(nest(name, wrappers))
    figure(
        "optimisers nested at random in optax's wrappers: refused exactly if they hold updates back",
        cases=cases,
        result=f"{len(chosen)} of those taken were trained with beside optax: parameters and state agree to 2e-5",
    )


# what can't be an optimiser at all, and what it may do


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (0.1, "a float is no optax transformation"),
        (optax.MultiSteps(SGD, 2), r"optax.MultiSteps accumulates .*, and byol_jax.accumulate\(learner, parts\) for"),
        (
            optax.GradientTransformation(lambda params: (), lambda g, s, p=None: (g, (jnp.zeros(2),))),
            r"no state: its update gives a state of another structure, shape or dtype than it gets \(0: float32 \[2\]",
        ),
        (
            optax.GradientTransformation(lambda params: jnp.int32(0), lambda g, s, p=None: (g, s + 0.5)),
            "the whole: float32 .* for int32",
        ),
        (
            optax.GradientTransformation(lambda params: (), lambda g, s, p=None: (jax.tree.map(jnp.mean, g), s)),
            r"other shapes than the parameters \(encoder/first/b: float32 \[\] for float32 \[6\]\)",
        ),
        (
            optax.GradientTransformation(lambda params: float(optax.tree.norm(params)), lambda g, s, p=None: (g, s)),
            "its init fails on abstract parameters",
        ),
    ],
)
def test_what_a_step_cannot_use_is_refused(optimizer, words):
    with pytest.raises(ConfigurationError, match=f"^optimizer.*{words}"):
        learner_with(optimizer)


@pytest.mark.parametrize("names", [(), ("value",), ("grad",), ("value", "grad"), ("others",)])
def test_an_update_gets_what_it_takes(names):
    """A signature of anybody's: with optax's `**extra_args`, with one name, or with none."""
    got = []

    def update(gradient, state, params=None, **known):
        got.append(set(known))
        return gradient, state

    signatures = {
        (): lambda g, s, p=None: update(g, s, p),
        ("value",): lambda g, s, p=None, *, value: update(g, s, p, value=value),
        ("grad",): lambda g, s, p=None, *, grad: update(g, s, p, grad=grad),
        ("value", "grad"): lambda g, s, p=None, *, value, grad: update(g, s, p, value=value, grad=grad),
        ("others",): update,
    }
    learner_with(optax.GradientTransformationExtraArgs(lambda params: (), signatures[names]))
    assert got == [{"value", "grad"} if names == ("others",) else set(names)]


def test_galore_is_taken_where_every_parameter_is_used():
    assert callable(learner_with(contrib.galore(0.1), hidden_layer="second").step)


def test_an_optimizer_may_average_over_the_mapped_axis():
    def update(gradient, state, params=None):
        return jax.lax.pmean(gradient, "devices"), state

    averaging = optax.chain(optax.GradientTransformation(lambda params: (), update), SGD)
    assert callable(learner_with(averaging, axis_name="devices").step)
    with pytest.raises(ConfigurationError, match="devices"):
        learner_with(averaging)


# evaluation parameters


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: optax.chain(optax.clip(1.0), inner)])
def test_a_training_point_that_is_not_to_be_evaluated_is_named(wrap):
    optimizer = wrap(contrib.schedule_free_sgd(0.1))
    with pytest.warns(UserWarning, match="schedule_free.* give evaluation_params=optax.contrib"):
        learner_with(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner_with(optimizer, evaluation_params=lambda opt_state, params: params)


@pytest.mark.slow
def test_evaluation_takes_the_point_that_evaluation_params_gives():
    """Schedule-free: x = (y - (1 - b1) z) / b1, of the parameters y and the state's z; what isn't trained stays."""
    learner = learner_with(contrib.schedule_free_sgd(0.1), evaluation_params=contrib.schedule_free_eval_params)
    start = learner.init(jax.random.key(0))
    state = start.replace(opt_state=start.opt_state._replace(z=jax.tree.map(lambda z: z + 0.3, start.opt_state.z)))
    evaluated = learner.evaluation_state(state)
    for name, part in evaluated.online.params.items():
        trained = {"first": part["first"]} if name == "encoder" else part
        there, z = state.online.params[name], state.opt_state.z[name]
        there = {"first": there["first"]} if name == "encoder" else there
        expected = jax.tree.map(lambda y, z: (y - 0.1 * z) / 0.9, there, {one: z[one] for one in there})
        assert_leaves_close(trained, expected)
    assert evaluated.online.params["encoder"]["second"]["w"] is state.online.params["encoder"]["second"]["w"]
    plain = learner_with(contrib.schedule_free_sgd(0.1))
    for function in ("embed", "project"):
        ours = getattr(learner, function)(state, IMAGES)
        np.testing.assert_array_equal(ours, getattr(plain, function)(evaluated, IMAGES))
        assert np.abs(ours - getattr(plain, function)(state, IMAGES)).max() > 1e-3
        np.testing.assert_array_equal(
            getattr(learner, function)(state, IMAGES, which="target"),
            getattr(plain, function)(state, IMAGES, which="target"),
        )


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda opt_state, params: params["encoder"], "another structure"),
        (
            lambda opt_state, params: jax.tree.map(lambda leaf: leaf[None], params),
            r"float32 \[1, 6\] for float32 \[6\]",
        ),
        (contrib.schedule_free_eval_params, "TraceState"),
        (lambda params: params, "positional argument"),
    ],
)
def test_evaluation_params_that_fit_nothing_are_refused(function, words):
    with pytest.raises(
        ConfigurationError, match=f"^evaluation_params.*{words}.*expected .opt_state, params. -> params"
    ):
        learner_with(SGD, evaluation_params=function)


@pytest.mark.slow
def test_without_it_evaluation_takes_the_parameters_themselves():
    learner = learner_with(SGD)
    state = learner.init(jax.random.key(0))
    assert learner.evaluation_state(state).online.params is state.online.params


def test_optimizers_of_a_users_report_take_the_loss():
    """Reported: a bare TypeError at the first step."""
    for optimizer in (optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau()), optax.polyak_sgd()):
        learner = learner_with(optimizer)
        state = jax.eval_shape(learner.init, jax.random.key(0))
        after, _ = jax.eval_shape(learner.step, state, IMAGES)
        assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.slow
def test_a_run_exports_and_measures_the_evaluated_point(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)
    options = {"num_channels": 1, "projection_size": 8, "projection_hidden_size": 16, "image_size": 16}
    options |= {"augment_fn": lambda key, image: image * jax.random.uniform(key)}
    options |= {"optimizer": contrib.schedule_free_sgd(3.0, warmup_steps=2)}
    options |= {"evaluation_params": contrib.schedule_free_eval_params}
    encoder = nets.small_cnn((4,))
    state = pretrain(encoder, images, out=tmp_path, steps=2, batch_size=8, progress=False, **options)
    learner = make_learner(encoder, **options)
    state = state.replace(step=None, key=None)
    evaluated, trained = (
        interop.encoder_state_dict(encoder, encoder_variables(one)) for one in (learner.evaluation_state(state), state)
    )
    exported = interop.load_state_dict(tmp_path / "exported" / "encoder.safetensors")
    for name, array in evaluated.items():
        np.testing.assert_allclose(exported[name], array, rtol=1e-6, atol=1e-7)
    assert any(np.abs(exported[name] - trained[name]).max() > 1e-3 for name in trained)
    rows, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["evaluation_feature_std"] == pytest.approx(
        float(feature_std(learner.project(state, images))), rel=1e-4
    )
