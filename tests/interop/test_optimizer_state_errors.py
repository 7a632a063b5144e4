"""What can't be converted between torch's and optax's optimiser states is refused in one line that names all of it."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from optimizer_runs import PAIRS, RATE, layers, small, trained

import interop
from byol_jax import ConfigurationError
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError

NAMES = [name for name, _ in layers().named_parameters()]


def adam(**options):
    return trained(layers().float(), lambda p: torch.optim.Adam(p, lr=RATE, **options)).state_dict()


def momentum(**options):
    return trained(
        layers().float(), lambda p: torch.optim.SGD(p, lr=RATE, **({"momentum": 0.9} | options))
    ).state_dict()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda p: torch.optim.Adam(p, amsgrad=True), r"max_exp_avg_sq \(AMSGrad\), amsgrad=True"),
        (lambda p: torch.optim.NAdam(p), r"momentum_decay \(NAdam\), mu_product \(NAdam\)"),
        (lambda p: torch.optim.RMSprop(p, centered=True), r"alpha \(RMSprop\), .*grad_avg \(centred RMSprop\)"),
        (lambda p: torch.optim.Adagrad(p), r"lr_decay \(Adagrad\), sum \(Adagrad\)"),
        (lambda p: torch.optim.Adadelta(p), r"rho \(Adadelta\)"),
        (lambda p: torch.optim.RAdam(p), "betas without amsgrad"),
        (lambda p: torch.optim.Adamax(p), r"exp_inf \(Adamax\)"),
        (lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, dampening=0.5), r"dampening=0\.5"),
        (lambda p: torch.optim.Adam(p, maximize=True), "maximize=True"),
    ],
)
def test_other_torch_optimisers_are_refused_by_name(make, named):
    """As a source, and as what shall go on."""
    theirs = trained(layers().float(), make).state_dict()
    with pytest.raises(StateDictMismatchError, match=f"only Adam's, AdamW's and SGD's: it has .*{named}"):
        interop.from_torch_opt_state(theirs, like=small())
    with pytest.raises(StateDictMismatchError, match=r"can't be converted"):
        interop.to_torch_opt_state(small(), like=make(layers().parameters()))


@pytest.mark.parametrize(
    ("optimizer", "named"),
    [
        (optax.amsgrad(RATE), "ScaleByAmsgradState has no counterpart"),
        (optax.rmsprop(RATE), "ScaleByRmsState has no counterpart"),
        (optax.chain(optax.ema(0.9), optax.adagrad(RATE)), "EmaState .*; ScaleByRssState has no counterpart"),
        (optax.MultiSteps(optax.adam(RATE), 2), "MultiStepsState has no counterpart"),
        (optax.chain(optax.scale_by_adam(), optax.trace(0.9)), "0/kernel has moments twice.*no single torch optimiser"),
    ],
)
def test_other_optax_states_are_refused_by_name(optimizer, named):
    with pytest.raises(StateDictMismatchError, match=named):
        interop.from_torch_opt_state(adam(), like=small(optimizer))
    with pytest.raises(StateDictMismatchError, match=named):
        interop.to_torch_opt_state(small(optimizer), like=adam())


def test_the_two_sides_must_be_the_same_optimiser():
    plain = trained(layers().float(), PAIRS["SGD"][0]).state_dict()
    for theirs, ours in [(adam(), "momentum"), (momentum(), "Adam"), (plain, "momentum"), (momentum(), "SGD")]:
        state = small(PAIRS[ours][1])
        with pytest.raises(StateDictMismatchError, match="use the same optimiser on both sides"):
            interop.from_torch_opt_state(theirs, like=state)
        with pytest.raises(StateDictMismatchError, match="use the same optimiser on both sides"):
            interop.to_torch_opt_state(state, like=theirs)


def test_everything_that_does_not_fit_is_listed_at_once():
    theirs = adam()
    theirs["state"][0]["exp_avg"] = torch.zeros(4, 3, 3, 2)
    theirs["state"][1]["exp_avg_sq"] = torch.zeros(4, dtype=torch.float64)
    theirs["state"][2]["step"] = torch.tensor(5.0)
    names = [name.replace("3.weight", "3.weihgt") for name in NAMES]
    with pytest.raises(StateDictMismatchError) as caught:
        interop.from_torch_opt_state(theirs, like=small(), parameter_names=names)
    message = str(caught.value)
    for part in (
        "2 missing: 3.weight.exp_avg (nearest: 3.weihgt.exp_avg)",
        "2 unexpected: 3.weihgt.exp_avg",
        "0.weight.exp_avg (given [4, 3, 3, 2], expected [4, 3, 3, 3])",
        "0.bias.exp_avg_sq (given float64, expected float32)",
        "step (optax has one for all parameters, here are 2 of 0.weight, 0.bias, 1.bias, ",
        ", 3.bias; 5 of 1.weight)",
    ):
        assert part in message
    assert "\n" not in message


def test_a_torch_optimiser_for_other_parameters_is_refused():
    names = [name.replace("3.weight", "3.weihgt") for name in NAMES]
    with pytest.raises(StateDictMismatchError, match=r"1 missing: 3\.weight \(nearest: 3\.weihgt\)"):
        interop.to_torch_opt_state(small(), like=adam(), parameter_names=names)
    module = layers().float()
    module[3] = torch.nn.Linear(4, 3)
    with pytest.raises(
        StateDictMismatchError, match=r"2 wrong shape: 3\.bias \(given \[3\], .*, 3\.weight \(given \[3, 4"
    ):
        interop.to_torch_opt_state(small(), like=torch.optim.Adam(module.parameters()), parameter_names=NAMES)


def test_names_are_asked_for_where_shapes_and_numbers_do_not_tell():
    params = {name: {"kernel": jnp.zeros((3, 3))} for name in ("query", "key")}
    module = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3, bias=False) for name in params})
    optimizer, like = trained(module), optax.adam(RATE).init(params)
    with pytest.raises(StateDictMismatchError, match=r"may be key\.weight, query\.weight; give parameter_names=\["):
        interop.from_torch_opt_state(optimizer.state_dict(), like=like)
    names = [name for name, _ in module.named_parameters()]
    state = interop.from_torch_opt_state(optimizer.state_dict(), like=like, parameter_names=names)
    theirs = optimizer.state[module["query"].weight]["exp_avg"].numpy()
    np.testing.assert_array_equal(state[0].mu["query"]["kernel"], theirs.T)
    with pytest.raises(StateDictMismatchError, match="3 parameters; the torch optimiser has 2"):
        interop.from_torch_opt_state(optimizer.state_dict(), like=like, parameter_names=[*names, "value.weight"])
    with pytest.raises(
        StateDictMismatchError, match="has 6 parameters, 6 with state, and names none; the JAX side has 2"
    ):
        interop.from_torch_opt_state(adam(), like=like)
    wider = optax.adam(RATE).init({"query": {"kernel": jnp.zeros((3, 3))}, "key": {"kernel": jnp.zeros((3, 4))}})
    with pytest.raises(StateDictMismatchError, match=r"number 1 has \[3, 3\], left are key\.weight \[4, 3\]"):
        interop.from_torch_opt_state(optimizer.state_dict(), like=wider)


def damaged(change):
    theirs = copy.deepcopy(adam())
    change(theirs)
    return theirs


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (lambda: {"fc.weight": torch.zeros(2)}, r"no optimiser's state: expected optimizer\.state_dict\(\)"),
        (lambda: "adam.pt", r"torch\.load\(path, weights_only=True\)"),
        (lambda: {"optimizer_states": [adam(), adam()]}, "holds 2 optimisers' states"),
        (lambda: damaged(lambda one: one["param_groups"][0]["params"].pop()), "don't list each of its parameters once"),
        (
            lambda: damaged(lambda one: one["state"][0].pop("step")),
            "step of parameter 0: expected an array, got NoneType",
        ),
        (lambda: damaged(lambda one: one["state"][3].update(step=torch.tensor(1.5))), "step of parameter 3 is .*whole"),
        (lambda: damaged(lambda one: one["state"][3].update(step=torch.tensor(torch.nan))), "step of parameter 3 is"),
    ],
)
def test_what_is_no_optimisers_state_is_refused(theirs, message):
    with pytest.raises(CheckpointFormatError, match=message):
        interop.from_torch_opt_state(theirs(), like=small())


def test_steps_that_contradict_and_abstract_hyperparameters_are_refused():
    with pytest.raises(ConfigurationError, match="step=7: the torch optimiser has done 2; leave step out"):
        interop.from_torch_opt_state(adam(), like=small(), step=7)
    with pytest.raises(ConfigurationError, match="step=-1: expected a whole number"):
        interop.from_torch_opt_state(adam(), like=small(), step=-1)
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    with pytest.raises(ConfigurationError, match="like: its counts and hyper-parameters are kept"):
        interop.from_torch_opt_state(adam(), like=jax.eval_shape(lambda: small(injected)))
