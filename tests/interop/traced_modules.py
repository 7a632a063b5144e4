"""Hand-written torch modules with the usual tricks, each of which a bridge gets wrong."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune


class Residual(nn.Module):
    """In-place ReLU and addition after batch norm, one ReLU module called twice, a classifier behind it."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        return self.fc(self.pool(self.relu(y)).flatten(1))


class Tied(nn.Module):
    """Two layers with one weight, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(48, 48)
        self.second = nn.Linear(48, 48)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, x):
        return self.again(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))


class Buffers(nn.Module):
    """Buffers of every kind, changed in the forward pass: floats, integers, one that isn't saved, one that is fixed."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 6)
        self.register_buffer("average", torch.zeros(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("shadow", torch.ones(6), persistent=False)
        self.register_buffer("fixed", torch.linspace(0.5, 2.0, 6), persistent=False)
        self.register_buffer("order", torch.tensor([5, 3, 1, 0, 2, 4]))

    def forward(self, x):
        y = self.linear(x.flatten(1))
        if self.training:
            self.average.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
            self.calls += 1
            self.shadow *= 0.5
        return (y * self.fixed + self.average * self.shadow)[:, self.order]


class Parametrised(nn.Module):
    """Weight norm and spectral norm: weights that are computed, and buffers that a power iteration moves."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))

    def forward(self, x):
        return self.linear(torch.tanh(self.conv(x)).mean((2, 3)))


class Stopped(nn.Module):
    """What gets no gradient: detached, under no_grad, frozen, unused."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(48, 6)
        self.detached = nn.Linear(48, 6)
        self.unseen = nn.Linear(48, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = x.flatten(1)
        with torch.no_grad():
            unseen = self.unseen(x)
        return self.frozen(self.used(x)) * self.detached(x).detach() + unseen


class Attention(nn.Module):
    """Patches, a class token, multi-head attention (whose fast path differs in evaluation), einsum, roll, windows."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)  # [N, 4, 8]
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.block(torch.roll(x, 1, dims=1))
        return torch.einsum("nld,de->nle", x, self.mix)[:, 0]


class Windows(nn.Module):
    """Work on windows of the image: the batch is multiplied and divided, strided slices, unfold, pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        n, c, h, w = x.shape
        windows = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)  # [N·4, 4, 3]
        y = self.linear(self.norm(windows)).reshape(n, h // 2, w // 2, 4, 4).permute(0, 3, 4, 1, 2).reshape(n, 16, 2, 2)
        patches = F.unfold(x[:, :, ::2, 1::2], 2).flatten(1)
        return torch.cat([F.pixel_shuffle(y, 2).flatten(1), patches], 1)


class Several(nn.Module):
    """A dictionary of outputs; only its layers can be used."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.body(x)
        return {"map": x, "logits": self.head(x.mean((2, 3)))}


class Chance(nn.Module):
    """Dropout, channel dropout and stochastic depth by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.channels = nn.Dropout2d(0.3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = self.channels(self.conv(x))
        if self.training:
            y = y * torch.empty(y.shape[0], 1, 1, 1).bernoulli_(0.8) / 0.8
        return self.drop(y.flatten(1))


class ChanceInside(nn.Module):
    """Dropout inside attention and between recurrent layers, where no operator of its own shows it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 2, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.lstm = nn.LSTM(8, 4, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)

    def forward(self, x):
        y = self.conv(x).flatten(2).transpose(1, 2)
        y, _ = self.attention(y, y, y, need_weights=False)
        return self.lstm(y)[0].mean(1)


class Signal(nn.Module):
    """No images: [N, channels, time]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 5, stride=2)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).amax(-1))


class Recomputed(nn.Module):
    """Weights that are attributes, computed anew before each call: those of weight norm, spectral norm and pruning as
    torch had them first. They are computed from parameters, so that torch's own copy refuses them."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would rather have the newer one
            self.normed = nn.utils.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.pruned = nn.Conv2d(4, 4, 3, padding=1)
        prune.l1_unstructured(self.pruned, "weight", 0.5)
        prune.ln_structured(self.pruned, "weight", 0.25, n=2, dim=0)
        self.spectral = nn.utils.spectral_norm(nn.Linear(64, 5))
        self(torch.rand(2, 3, 4, 4))

    def forward(self, x):
        self.seen = torch.tanh(self.pruned(self.normed(x)))
        return self.spectral(self.seen.flatten(1))


class Shared(nn.Module):
    """One block with batch norm under two names, run twice; instance norm's running statistics, a gated unit."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.second = self.first
        self.norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
        self.gate = nn.GLU(2)

    def forward(self, x):
        return self.gate(self.norm(self.second(self.first(x)))).flatten(1)


class Transformed(nn.Module):
    """A spatial transformer, and sums of its pixels by a graph's edges."""

    def __init__(self):
        super().__init__()
        self.where = nn.Linear(48, 6)
        self.what = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("edges", torch.tensor([0, 3, 3, 1, 2, 0, 1, 3] * 2))

    def forward(self, x):
        maps = self.where(x.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(maps, [x.shape[0], 4, 4, 4], align_corners=False)
        y = F.grid_sample(self.what(x), grid, padding_mode="border", align_corners=False).flatten(2)  # [N, 4, 16]
        return torch.zeros(y.shape[0], 4, 4, dtype=y.dtype).index_add(2, self.edges, y).flatten(1)


MODULES = {
    kind.__name__: kind
    for kind in (Residual, Tied, Buffers, Parametrised, Recomputed, Shared, Stopped, Attention, Windows)
}
"""Those that take [N, 3, 4, 4] and give one tensor."""
