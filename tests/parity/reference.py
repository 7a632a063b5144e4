"""byol-pytorch as a reference: a learner of it without randomness, and its numbers under our leaf names."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from byol_pytorch import BYOL

LEAVES = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
    "num_batches_tracked": "num_batches_tracked",
}
STATISTICS = ("mean", "var", "num_batches_tracked")
ROOTS = {
    "online": {
        "encoder": "online_encoder.net.",
        "projector": "online_encoder.projector.",
        "predictor": "online_predictor.",
    },
    "target": {"encoder": "target_encoder.net.", "projector": "target_encoder.projector."},
}


def torch_learner(
    net: torch.nn.Module, *, image_size: int, second_view: Any, dtype: torch.dtype, seed: int = 0, **options: Any
) -> BYOL:
    """A byol-pytorch learner whose first view is the image itself; built in float32, then cast."""
    torch.manual_seed(seed)
    options = {"use_simplicial_embeddings": False, "sync_batchnorm": False} | options
    with one_thread():
        learner = BYOL(net, image_size, augment_fn=torch.nn.Identity(), augment_fn2=second_view, **options)
    return learner.to(dtype)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The reference's last bits depend on the number of threads, and two only slow small networks down (40 times)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def flip(images: torch.Tensor) -> torch.Tensor:
    return images.flip(-1)


def our_name(key: str, ndim: int) -> str:
    """Our leaf's name for a torch key: path with "/", and the leaf's own name by its kind."""
    *path, last = key.split(".")
    leaf = "kernel" if last == "weight" and ndim > 1 else LEAVES[last]
    return "/".join([*path, leaf])


def our_leaves(state_dict: Mapping[str, torch.Tensor], prefix: str) -> dict[str, np.ndarray]:
    """Every tensor below `prefix`, named and laid out as our leaves."""
    leaves = {}
    for key, tensor in state_dict.items():
        if key.startswith(prefix):
            array = tensor.detach().numpy().copy()
            name = our_name(key[len(prefix) :], array.ndim)
            leaves[name] = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0)) if array.ndim > 1 else array
    return leaves


def our_gradients(learner: BYOL) -> dict[str, np.ndarray | None]:
    """The online network's gradients, as the last backward pass left them; None where it left none."""
    parameters = dict(learner.named_parameters(remove_duplicate=False))
    found: dict[str, np.ndarray | None] = {}
    for part, root in ROOTS["online"].items():
        own = {key: parameter for key, parameter in parameters.items() if key.startswith(root)}
        given = our_leaves({key: one.grad for key, one in own.items() if one.grad is not None}, root)
        names = [our_name(key.removeprefix(root), parameter.ndim) for key, parameter in own.items()]
        found |= {f"{part}/{name}": given.get(name) for name in names}
    return found


def our_networks(learner: BYOL) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """{"online": {"params": {"encoder/conv1/kernel": …}, "stats": {…}}, "target": …}, as TrainState names them."""
    state_dict = learner.state_dict()
    networks: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for network, roots in ROOTS.items():
        networks[network] = {"params": {}, "stats": {}}
        for part, root in roots.items():
            for name, leaf in our_leaves(state_dict, root).items():
                kind = "stats" if name.rsplit("/", 1)[-1] in STATISTICS else "params"
                networks[network][kind][f"{part}/{name}"] = leaf
    return networks
