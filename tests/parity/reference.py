"""byol-pytorch as a reference: a learner of it without randomness, and its numbers under our leaf names."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
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
STATISTICS = ("mean", "var", "running_mean", "running_var", "num_batches_tracked")
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


Leaf = Callable[[str, np.ndarray], tuple[str, np.ndarray]]
"""From a torch key and its tensor to our leaf's name, path with "/", and our layout."""


def native(key: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """As a network of ours names it, by its kind: kernels are HWIO, or [in, out]."""
    *path, last = key.split(".")
    leaf = "kernel" if last == "weight" and array.ndim > 1 else LEAVES[last]
    ours = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0)) if array.ndim > 1 else array
    return "/".join([*path, leaf]), ours


def traced(key: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """As a traced network has it: torch's own."""
    return key.replace(".", "/"), array


def below(tensors: Mapping[str, torch.Tensor], roots: Mapping[str, str], encoder: Leaf) -> dict[str, np.ndarray]:
    """Every tensor below one of the `roots`, as our leaves; `encoder` says how the encoder's are named."""
    leaves = {}
    for part, root in roots.items():
        named = encoder if part == "encoder" else native
        for key, tensor in tensors.items():
            if key.startswith(root):
                name, array = named(key[len(root) :], tensor.detach().numpy().copy())
                leaves[f"{part}/{name}"] = array
    return leaves


def our_gradients(learner: BYOL, encoder: Leaf = native) -> dict[str, np.ndarray | None]:
    """The online network's gradients, as the last backward pass left them; None where it left none."""
    parameters = dict(learner.named_parameters(remove_duplicate=False))
    given = {key: one.grad for key, one in parameters.items() if one.grad is not None}
    names = below(parameters, ROOTS["online"], encoder)
    return dict.fromkeys(names) | below(given, ROOTS["online"], encoder)


def our_networks(learner: BYOL, encoder: Leaf = native) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """{"online": {"params": {"encoder/conv1/kernel": …}, "stats": {…}}, "target": …}, as TrainState names them."""
    networks: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for network, roots in ROOTS.items():
        networks[network] = {"params": {}, "stats": {}}
        for name, leaf in below(learner.state_dict(), roots, encoder).items():
            kind = "stats" if name.rsplit("/", 1)[-1] in STATISTICS else "params"
            networks[network][kind][name] = leaf
    return networks
