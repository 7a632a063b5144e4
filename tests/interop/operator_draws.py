"""Random tensors to call operators with."""

import torch


class Draw:
    """Random tensors from one seed, in float64; sizes too, so that no case depends on one shape."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def positive(self, *shape):
        return self.normal(*shape).abs() + 0.1

    def fixed(self, *shape):
        """Positive, and nothing that gradients are asked for."""
        tensor = self.positive(*shape)
        tensor.fixed = True
        return tensor

    def inside(self, *shape):
        """Strictly between -1 and 1."""
        return torch.tanh(self.normal(*shape))

    def integers(self, high, *shape):
        return torch.randint(0, high, shape, generator=self.generator)

    def bools(self, *shape):
        return self.integers(2, *shape).bool()

    def size(self, low=2, high=6):
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def shape(self, rank):
        return tuple(self.size() for _ in range(rank))


class Corners(Draw):
    """Halves and whole numbers up to 3: zeros, equal numbers, and the bounds of activations among them."""

    def normal(self, *shape):
        return (super().normal(*shape) * 2).round().clamp(-6, 6) / 2

    def positive(self, *shape):
        return self.normal(*shape).abs()


class Zeros(Draw):
    """Nothing else, of both signs."""

    def normal(self, *shape):
        return super().normal(*shape) * 0

    def positive(self, *shape):
        return self.normal(*shape).abs()


def image(d, channels=None, least=5):
    return d.normal(d.size(2, 3), channels or d.size(2, 4), d.size(least, least + 4), d.size(least, least + 4))


def pair(d):
    """Two operands that broadcast: the second lacks the first axis, and has size 1 somewhere."""
    shape = d.shape(4)
    return d.normal(*shape), d.normal(shape[1], 1, shape[3])


def matched(d, rank=3):
    shape = d.shape(rank)
    return d.normal(*shape), d.normal(*shape)
