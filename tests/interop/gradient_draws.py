"""Random networks whose gradients a forward pass doesn't tell: Functions, checkpoints, hooks, what is frozen."""

import random

import torch
import torch.utils.checkpoint as checkpoints
from torch import nn
from torch.autograd.function import once_differentiable

__all__ = ["FUNCTIONS", "HOOKS", "Drawn"]

WIDTH = 6


class Rounded(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx, dy):
        return dy


class Reversed(torch.autograd.Function):
    """Domain adaptation's layer; it returns its own input."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x

    @staticmethod
    def backward(ctx, dy):
        return -ctx.factor * dy, None


class Clipped(torch.autograd.Function):
    """A gradient that isn't linear in what comes from behind."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, dy):
        return dy.clamp(-0.3, 0.3)


class Scaled(torch.autograd.Function):
    """A parameter, several outputs, of which one isn't differentiable and one isn't floating."""

    @staticmethod
    def forward(x, scale):
        return x * scale, x.detach().exp(), x > 0

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output[0])
        ctx.mark_non_differentiable(output[1], output[2])

    @staticmethod
    def backward(ctx, dy, *rest):
        x, scale, y = ctx.saved_tensors
        return dy * scale + y / 8, 3 * (dy * x).sum(0)


class Doubled(torch.autograd.Function):
    """Old style: `no_grad` inside, the gradient by torch itself, and twice as large."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.no_grad():
            return torch.sin(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            y = torch.sin(x)
        return 2 * torch.autograd.grad(y, x, dy)[0]


class Nothing(torch.autograd.Function):
    """No gradient by its input."""

    @staticmethod
    def forward(ctx, x):
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, dy):
        return None


rounded = Rounded.apply  # a name of its own, as many libraries give it
FUNCTIONS = {
    "rounded": lambda x, scale: rounded(x),
    "reversed": lambda x, scale: Reversed.apply(x, 0.5),
    "clipped": lambda x, scale: Clipped.apply(x),
    "scaled": lambda x, scale: torch.where((parts := Scaled.apply(x, scale))[2], parts[0], parts[0] / 2) + parts[1] / 9,
    "doubled": lambda x, scale: Doubled.apply(x),
    "mixed": lambda x, scale: x + Nothing.apply(x),
}

HOOKS = {
    "tensor": "registers a hook on a tensor's gradient",
    "backward": "has a backward hook",
    "backward before": "has a backward hook",
    "parameter": "has a hook on its gradient",
    "after accumulation": "has a hook on its gradient",
}
"""Kinds of hooks, and what a refusal says of them."""


class Step(nn.Module):
    """A layer and one or two things after it; with a depth, inside a checkpoint or beside a branch."""

    def __init__(self, draw: random.Random, depth: int):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if draw.random() < 0.3 else nn.Identity()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))
        self.function = draw.choice([*FUNCTIONS, None, None, None])
        self.form = draw.choice(["plain", "reentrant", "kept", "sequential", "detached", "unseen", "zero", "in place"])
        self.inner = Step(draw, depth - 1) if depth else nn.Tanh()
        self.zero = nn.Parameter(torch.zeros(()))
        self.layer.weight.requires_grad_(draw.random() < 0.8)
        self.hook = None

    def work(self, x):
        x = self.norm(self.layer(x))
        if self.hook == "tensor":
            x.register_hook(lambda gradient: 2 * gradient)
        if self.function is not None:
            x = FUNCTIONS[self.function](x, self.scale)
        return self.inner(x)

    def forward(self, x):
        match self.form:
            case "reentrant":
                return checkpoints.checkpoint(self.work, x, use_reentrant=True)
            case "kept":
                return checkpoints.checkpoint(self.work, x, use_reentrant=False)
            case "sequential":
                return checkpoints.checkpoint_sequential([self.layer, self.norm, self.inner], 2, x, use_reentrant=True)
            case "detached":
                return self.work(x) + x.detach() * self.layer(x)
            case "unseen":
                with torch.no_grad():
                    gate = torch.sigmoid(self.layer(x))
                return gate * self.work(x)
            case "zero":
                return x + self.zero * self.work(x)
            case "in place":
                return (1.5 * self.work(x)).add_(x).mul_(0.5)
        return self.work(x)


class Drawn(nn.Module):
    """[N, 3, 4, 4] to [N, 6]. `kind_of_hook`: None, or one of `HOOKS`."""

    def __init__(self, seed: int, kind_of_hook: str | None = None):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.stem = nn.Linear(48, WIDTH)
        self.steps = nn.ModuleList(Step(draw, draw.randrange(2)) for _ in range(draw.randint(1, 3)))
        self.unused = nn.Linear(2, 2)
        where = draw.choice(list(self.steps))
        match kind_of_hook:
            case "tensor":
                where.hook, where.form = "tensor", "plain"
                where.layer.requires_grad_(True)
            case "backward":
                where.layer.register_full_backward_hook(lambda part, dx, dy: tuple(2 * d for d in dx))
            case "backward before":
                where.register_full_backward_pre_hook(lambda part, dy: tuple(2 * d for d in dy))
            case "parameter":
                where.scale.register_hook(lambda gradient: 0 * gradient)
            case "after accumulation":
                where.scale.register_post_accumulate_grad_hook(lambda parameter: parameter.grad.zero_())

    def forward(self, x):
        x = torch.tanh(self.stem(x.flatten(1)))
        for step in self.steps:
            x = step(x)
        return x
