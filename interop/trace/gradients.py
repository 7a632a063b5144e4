"""Gradients that a forward pass doesn't tell: a Function's own backward, recomputation, hooks. All of it is torch.

A graph's gradient is that of its operators. Where torch's is another, what makes it so is followed while the module's
code is written down, or it is refused:

    torch.autograd.Function     its backward is written down too, between two operators of our own (below)
    reentrant checkpoint        calls the function itself, whose gradient it recomputes
    a hook on a gradient        refused, wherever it is: on a module, a parameter or a tensor
    autocast that is off        left out, since torch.export forgets a no_grad inside of it

A Function's call y = F(x) becomes, in this order:

    y         operators of F.forward
    dy        byol_jax.cotangent(y)
    dx        operators of F.backward, from dy and what the context kept
    result    byol_jax.function([x], [y], [dy], [dx]): y, and dx is its gradient by x

`interpret.py` makes one JAX function of these, so that backward runs when the gradient is taken, with the true dy.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial, partialmethod
from typing import Any

from byol_jax.errors import UnsupportedModuleError, one_line
from interop.arrays import import_torch
from interop.trace.graph import COTANGENT, FUNCTION

__all__ = ["Followed", "follow_gradients", "hooks_on_gradients"]

OWN_FUNCTION = "write what it does as a torch.autograd.Function, whose backward is followed"


def hooks_on_gradients(torch: Any, module: Any) -> Iterator[str]:
    """A line for each module and parameter whose gradient passes through a hook, with what to do."""
    everywhere = torch.nn.modules.module
    if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
        yield "a backward hook is registered for all modules: remove it (handle.remove())"
    for name, part in module.named_modules():
        if part._backward_hooks or part._backward_pre_hooks:
            yield (
                f"{name or 'the module'} has a backward hook, which changes gradients unseen by the forward pass: "
                f"remove it (handle.remove()), or {OWN_FUNCTION}"
            )
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            yield (
                f"{name} has a hook on its gradient: remove it (handle.remove()), freeze the parameter with "
                f"requires_grad_(False), or {OWN_FUNCTION}"
            )


class Followed:
    """What was met while a module's code was followed.

    Attributes:
        refused: a line for each thing whose gradient can't be followed.
        without_gradient: the sub-modules whose checkpoint gives no gradient, as in torch.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.without_gradient: list[str] = []

    def raise_if_refused(self, network: str) -> None:
        if self.refused:
            raise UnsupportedModuleError(f"{network} can't be imported: {'; '.join(dict.fromkeys(self.refused))}")

    def warn(self) -> None:
        """What torch warns of in training."""
        for path in dict.fromkeys(self.without_gradient):
            warnings.warn(
                f"{path}: torch.utils.checkpoint with use_reentrant=True is given nothing that requires a gradient, so "
                "the parameters inside get none, as in torch: use_reentrant=False trains them",
                stacklevel=2,
            )


@contextlib.contextmanager
def follow_gradients(module: Any, followed: Followed) -> Iterator[None]:
    """The context in which `torch.export` runs the module's code: gradients of their own are written down.

    Args:
        followed: gets what can't be.
    """
    torch = import_torch()
    path: list[str] = []

    def where() -> str:
        return path[-1] if path and path[-1] else "the module"

    def refuse(reason: str) -> None:
        followed.refused.append(f"{where()} {reason}")

    def without_gradient() -> None:
        followed.without_gradient.append(where())

    with contextlib.ExitStack() as stack:
        for name, part in module.named_modules():
            stack.callback(part.register_forward_pre_hook(partial(_enter, path, name), prepend=True).remove)
            stack.callback(part.register_forward_hook(partial(_leave, path), always_call=True).remove)
        stack.enter_context(_own_functions(torch, refuse))
        stack.enter_context(_no_recomputation(torch, without_gradient))
        stack.enter_context(_no_hooks_on_tensors(torch, refuse))
        stack.enter_context(_no_idle_autocast(torch))
        yield


def _enter(path: list[str], name: str, *rest: Any) -> None:
    path.append(name)


def _leave(path: list[str], *rest: Any) -> None:
    path.pop()


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def _no_hooks_on_tensors(torch: Any, refuse: Callable[[str], None]) -> Iterator[None]:
    """A tensor takes no hook inside the context; where it would have one, that is refused."""

    def instead_of(method: str, original: Callable[..., Any], tensor: Any, hook: Any) -> Any:
        if not tensor.requires_grad:
            return original(tensor, hook)  # torch's own error
        refuse(f"registers a hook on a tensor's gradient (Tensor.{method}): remove it, or {OWN_FUNCTION}")
        return torch.utils.hooks.RemovableHandle({})

    with contextlib.ExitStack() as stack:
        for method in ("register_hook", "register_post_accumulate_grad_hook"):
            original = getattr(torch.Tensor, method)
            replacement = partialmethod(partial(instead_of, method, original))
            stack.enter_context(_replaced(torch.Tensor, method, replacement))
        yield


@contextlib.contextmanager
def _no_recomputation(torch: Any, without_gradient: Callable[[], None]) -> Iterator[None]:
    """`torch.utils.checkpoint` calls the function itself.

    With use_reentrant=True there is no gradient, not even for parameters inside, where no argument requires one: as in
    torch. Without, hooks on everything that is kept would switch gradients where the graph doesn't see it.
    """
    import torch.utils.checkpoint as checkpoint

    class CheckpointFunction:
        @staticmethod
        def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
            if not torch.is_grad_enabled() or any(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
                return function(*args)
            without_gradient()
            with torch.no_grad():
                return function(*args)

    def nothing_around(*args: Any, **options: Any) -> Iterator[None]:
        yield

    names = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")  # torch 2.14's
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(checkpoint, "CheckpointFunction", CheckpointFunction))
        for name in names:
            if hasattr(checkpoint, name):
                stack.enter_context(_replaced(checkpoint, name, nothing_around))
        yield


@contextlib.contextmanager
def _no_idle_autocast(torch: Any) -> Iterator[None]:
    """`torch.autocast(…, enabled=False)` where none is on does nothing; torch.export would cut the code into parts at
    it, and forget a `torch.no_grad()` inside."""
    kind = torch.amp.autocast_mode.autocast
    entered: list[bool] = []

    def enter(original: Callable[..., Any], autocast: Any) -> Any:
        is_idle = not (autocast._enabled or any(entered) or torch.is_autocast_enabled(autocast.device))
        entered.append(not is_idle)
        return autocast if is_idle else original(autocast)

    def leave(original: Callable[..., Any], autocast: Any, *error: Any) -> Any:
        return original(autocast, *error) if entered.pop() else False

    with (
        _replaced(kind, "__enter__", partialmethod(partial(enter, kind.__enter__))),
        _replaced(kind, "__exit__", partialmethod(partial(leave, kind.__exit__))),
    ):
        yield


@contextlib.contextmanager
def _own_functions(torch: Any, refuse: Callable[[str], None]) -> Iterator[None]:
    """Every Function's `forward` and `setup_context` are a `_Follower`'s, however its `apply` was come by.

    torch looks both up on the class each time. A property of the metaclass goes before the class's own attribute, and
    is there for classes that are made later too.
    """
    metaclass, follower = torch.autograd.function.FunctionMeta, _Follower(torch, refuse)

    def followed(name: str, get: Callable[[Any], Any]) -> property:
        def assign(kind: Any, value: Any) -> None:
            delattr(metaclass, name)
            try:
                setattr(kind, name, value)
            finally:
                setattr(metaclass, name, whole)

        whole = property(get, assign)
        return whole

    properties = {
        "forward": followed("forward", lambda kind: partial(follower.forward, kind)),
        "setup_context": followed("setup_context", follower.setup_context_of),
    }
    try:
        for name, value in properties.items():
            setattr(metaclass, name, value)
        yield
    finally:
        for name in properties:
            delattr(metaclass, name)


def _defined(kind: Any, name: str) -> Callable[..., Any]:
    """A Function's static method as its class defines it."""
    return next(vars(base)[name] for base in kind.__mro__ if name in vars(base)).__get__(None, kind)


class _Context:
    """What a Function's forward keeps for its backward: torch's `ctx`, of which it has the documented methods."""

    def __init__(self, inputs: int) -> None:
        self.needs_input_grad = (True,) * inputs
        self.saved_tensors: tuple[Any, ...] = ()
        self.changed: tuple[Any, ...] = ()
        self.not_differentiable: tuple[Any, ...] = ()
        self.zeros_for_none = True

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """For forward-mode derivatives, which nothing here takes."""

    def mark_dirty(self, *tensors: Any) -> None:
        self.changed = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        self.not_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.zeros_for_none = value


class _Follower:
    """Runs the forward passes of Functions, and writes their backward passes down beside them."""

    def __init__(self, torch: Any, refuse: Callable[[str], None]) -> None:
        self.torch, self.refuse = torch, refuse
        self.inside = False
        self.constant: list[Any] = []

    def setup_context_of(self, kind: Any) -> Callable[..., Any]:
        """What torch calls as `kind.setup_context`: it keeps nothing, since backward has been written down already.

        Tensors that are kept may go through hooks, with gradients switched off unseen by the graph.
        """
        defined = _defined(kind, "setup_context")
        if defined is _defined(self.torch.autograd.Function, "setup_context") or self._mode() is None or self.inside:
            return defined
        return lambda ctx, inputs, output: ctx.mark_non_differentiable(*self.constant)

    def _mode(self) -> Any:
        """What writes the graph down; None where nothing is at this moment, and torch does something for itself."""
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        return get_proxy_mode()

    def forward(self, kind: Any, *args: Any, **kwargs: Any) -> Any:
        """What torch calls as `kind.forward`, with gradients switched off."""
        forward, mode = _defined(kind, "forward"), self._mode()
        if mode is None:
            return forward(*args, **kwargs)
        with_gradient = _grad_mode_in(self.torch, mode.tracer.graph)
        if self.inside:
            with self._grad_mode(with_gradient):
                return forward(*args, **kwargs)
        self.inside = True
        try:
            return self._follow(kind, partial(forward, **kwargs), args, with_gradient)
        finally:
            self.inside = False

    @contextlib.contextmanager
    def _grad_mode(self, enabled: bool) -> Iterator[None]:
        """Inside the context torch's mode is what the graph has there.

        torch has switched it off for `forward`, unseen by the graph; code that switches it and switches it back, a
        `torch.no_grad()`, would leave it off in the graph from there on.
        """
        self._set_grad_mode(enabled)
        try:
            yield
        finally:
            self._set_grad_mode(False)

    def _set_grad_mode(self, enabled: bool) -> None:
        with self.torch._C.DisableTorchFunction():  # else it would be written down
            self.torch._C._set_grad_enabled(enabled)

    def _follow(self, kind: Any, forward: Callable[..., Any], args: Sequence[Any], with_gradient: bool) -> Any:
        setup_context = _defined(kind, "setup_context")
        apart = setup_context is not _defined(self.torch.autograd.Function, "setup_context")
        inputs = args if apart else args[1:]
        context = _Context(len(inputs))
        with self._grad_mode(with_gradient):
            result = forward(*inputs) if apart else forward(context, *inputs)
            if apart:
                setup_context(context, inputs, result)
            outputs = list(result) if isinstance(result, tuple) else [result]
            fixed = {id(tensor) for tensor in context.not_differentiable}
            places = [place for place, y in enumerate(outputs) if self._is_floating(y) and id(y) not in fixed]
            if context.changed:
                self.refuse(f"calls {kind.__name__}, a torch.autograd.Function that changes its input: copy it there")
            needed = with_gradient and any(self._is_floating(x) and x.requires_grad for x in inputs)
            call = self._differentiate(kind, context, inputs, outputs, places) if needed and places else None
        results = iter(_operators(self.torch).function(*call) if call is not None else ())
        for place, y in enumerate(outputs):
            if self._is_floating(y):
                outputs[place] = next(results) if call is not None and place in places else y.detach()
        self.constant = [y for n, y in enumerate(outputs) if self._is_floating(y) and n not in places]
        if not apart:
            args[0].mark_non_differentiable(*self.constant)
        return tuple(outputs) if isinstance(result, tuple) else outputs[0]

    def _is_floating(self, x: Any) -> bool:
        return isinstance(x, self.torch.Tensor) and x.is_floating_point()

    def _differentiate(
        self, kind: Any, context: _Context, inputs: Sequence[Any], outputs: Sequence[Any], places: Sequence[int]
    ) -> tuple[list[Any], ...] | None:
        """The arguments of `byol_jax.function`: inputs, outputs, cotangents, gradients; None where backward fails."""
        torch = self.torch
        cotangents = {place: _operators(torch).cotangent(outputs[place].detach()) for place in places}
        given = [
            cotangents.get(n, torch.zeros_like(y) if isinstance(y, torch.Tensor) and context.zeros_for_none else None)
            for n, y in enumerate(outputs)
        ]
        backward = kind.backward if kind.vjp is torch.autograd.Function.vjp else kind.vjp
        given = [given] if getattr(kind, "boxed_grads_call", False) else given
        try:
            with _replaced(torch.autograd, "backward", _not_followed):
                gradients = backward(context, *given)
            gradients = gradients if isinstance(gradients, tuple | list) else (gradients,)
            pairs = [(x, g) for x, g in zip(inputs, gradients[: len(inputs)], strict=True) if self._is_floating(x)]
            by_input = [g if g is None or g.shape == x.shape else g.sum_to_size(x.shape) for x, g in pairs]
        except Exception as error:  # a user's code: anything
            self.refuse(
                f"calls {kind.__name__}, a torch.autograd.Function whose backward can't be followed "
                f"({type(error).__name__}: {one_line(error, at_most=200)}): use torch's own operators instead"
            )
            return None
        return [x for x, _ in pairs], [outputs[n] for n in places], [cotangents[n] for n in places], by_input


def _not_followed(*args: Any, **options: Any) -> None:
    raise NotImplementedError("it calls torch.autograd.backward; only torch.utils.checkpoint's own is followed")


def _grad_mode_in(torch: Any, graph: Any) -> bool:
    """Whether gradients are on at the graph's end, as far as it is written; they are at its beginning."""
    switches = (node for node in reversed(graph.nodes) if node.target is torch._C._set_grad_enabled)
    return next((bool(node.args[0]) for node in switches), True)


def _operators(torch: Any) -> Any:
    """The two operators, for torch: they say shapes and types, and are never run on numbers."""
    _library(torch)
    return torch.ops.byol_jax


@cache
def _library(torch: Any) -> Any:
    """Defines the operators once in a process; they are there as long as what it returns."""
    library = torch.library.Library("byol_jax", "DEF")
    operators = {
        COTANGENT: ("(Tensor y) -> Tensor", torch.empty_like),
        FUNCTION: (
            "(Tensor[] inputs, Tensor[] outputs, Tensor[] cotangents, Tensor?[] gradients) -> Tensor[]",
            lambda inputs, outputs, cotangents, gradients: [torch.empty_like(y) for y in outputs],
        ),
    }
    for full_name, (signature, shapes) in operators.items():
        name = full_name.split(".")[1]
        library.define(name + signature)
        library.impl(name, shapes, "CompositeExplicitAutograd")
    return library
