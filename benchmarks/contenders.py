"""The contenders: each builds its training step, or its matrix multiply, and hands it over as a plain function.

A step returns when all of its results are there. Nothing is timed here. Each contender runs in a process of its own, so
frameworks are imported inside the functions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks.workloads import HIDDEN_LAYER, LEARNING_RATE, Workload

__all__ = ["CONTENDERS", "PEAKS", "Contender", "build"]

LARGER_ON_ACCELERATORS = 4
"""A GPU multiplies 2048² in well under a millisecond, which measures the launch as much as the product."""


class Contender(NamedTuple):
    """Something to be timed.

    Attributes:
        step: does the work once and waits for the result.
        device: "cpu", or another kind and its name.
        facts: called after the work; gives the last `loss`, `flops`, `device_memory_bytes`, as far as known, as JSON.
    """

    step: Callable[[], None]
    device: str
    facts: Callable[[], dict[str, Any]]


def byol_jax(workload: Workload) -> Contender:
    """This project with its own network, as in its README: `jax.jit(learner.step, donate_argnums=0)`."""
    from byol_jax import nets

    return _jax_step(nets.resnet(workload.stages, block=workload.block), workload)


def byol_jax_traced(workload: Workload) -> Contender:
    """This project with torchvision's network, traced."""
    import torch

    import interop

    torch.manual_seed(0)
    return _jax_step(interop.from_torch_module(_torch_resnet(workload), image_size=workload.image_size), workload)


def _jax_step(encoder: Any, workload: Workload) -> Contender:
    import jax
    import optax

    from byol_jax import make_learner

    learner = make_learner(
        encoder,
        image_size=workload.image_size,
        hidden_layer=HIDDEN_LAYER,
        projection_size=workload.projection_size,
        projection_hidden_size=workload.projection_hidden_size,
        augment_fn=lambda key, image: image,
        optimizer=optax.adam(LEARNING_RATE),
    )
    images = jax.random.uniform(jax.random.key(1), (workload.batch_size, workload.image_size, workload.image_size, 3))
    now: dict[str, Any] = {"state": learner.init(jax.random.key(0)), "metrics": {}}
    jax.block_until_ready((images, now))
    train = jax.jit(learner.step, donate_argnums=0)

    def step() -> None:
        now["state"], now["metrics"] = jax.block_until_ready(train(now["state"], images))

    def facts() -> dict[str, Any]:
        cost = train.lower(now["state"], images).cost_analysis()
        counted = cost.get("flops") if isinstance(cost, dict) else None
        return {"loss": float(now["metrics"]["loss"]), "flops": counted, **_jax_memory()}

    return Contender(step, _jax_device(), facts)


def byol_pytorch(workload: Workload, *, layout: str) -> Contender:
    """byol-pytorch, eager, as in its README; `layout` is torch's "contiguous_format" (NCHW) or "channels_last"."""
    import torch
    from byol_pytorch import BYOL

    device, synchronise = _torch_device()
    memory_format = {"contiguous_format": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    torch.manual_seed(0)
    net = _torch_resnet(workload).to(device=device, memory_format=memory_format)  # pyright: ignore
    learner = BYOL(
        net,
        image_size=workload.image_size,
        hidden_layer=HIDDEN_LAYER,  # pyright: ignore[reportArgumentType]  its default is a number
        projection_size=workload.projection_size,
        projection_hidden_size=workload.projection_hidden_size,
        augment_fn=torch.nn.Identity(),
        use_simplicial_embeddings=False,
        sync_batchnorm=False,
    )
    optimizer = torch.optim.Adam(learner.parameters(), lr=LEARNING_RATE)
    images = torch.rand(workload.batch_size, 3, workload.image_size, workload.image_size)
    images = images.to(device=device, memory_format=memory_format)
    now: dict[str, Any] = {}

    def step() -> None:
        now["loss"] = learner(images)
        optimizer.zero_grad()
        now["loss"].backward()
        optimizer.step()
        learner.update_moving_average()
        synchronise()

    return Contender(step, _torch_name(device), lambda: {"loss": now["loss"].item(), **_torch_memory(device)})


def _torch_resnet(workload: Workload) -> Any:
    from torchvision.models import resnet

    block = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}[workload.block]
    return resnet.ResNet(block, list(workload.stages))


def jax_matmul(workload: Workload) -> Contender:
    """The product of two square float32 matrices in JAX."""
    import jax
    import jax.numpy as jnp

    size = workload.matmul_size * (1 if _jax_device() == "cpu" else LARGER_ON_ACCELERATORS)
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))  # [size, size] each
    multiply = jax.jit(jnp.matmul)
    return Contender(lambda: multiply(a, b).block_until_ready(), _jax_device(), lambda: {"flops": 2 * size**3})


def torch_matmul(workload: Workload) -> Contender:
    """The same in torch."""
    import torch

    device, synchronise = _torch_device()
    size = workload.matmul_size * (1 if device.type == "cpu" else LARGER_ON_ACCELERATORS)
    a, b, product = torch.randn(3, size, size, device=device)  # [size, size] each

    def step() -> None:
        torch.mm(a, b, out=product)
        synchronise()

    return Contender(step, _torch_name(device), lambda: {"flops": 2 * size**3})


CONTENDERS = {
    "byol_jax": byol_jax,
    "traced": byol_jax_traced,
    "eager": partial(byol_pytorch, layout="contiguous_format"),
    "channels_last": partial(byol_pytorch, layout="channels_last"),
}
"""By name: byol_jax with its own network and with a traced torch module; byol-pytorch in two memory layouts."""

PEAKS = {"jax": jax_matmul, "torch": torch_matmul}
"""Matrix multiplies that show the fastest that a framework computes on this machine."""


def build(name: str, workload: Workload) -> Contender:
    """The contender with this `name`, or for "peak NAME" the peak NAME, ready for its first step."""
    peak = name.removeprefix("peak ")
    return (CONTENDERS[name] if peak == name else PEAKS[peak])(workload)


def _jax_device() -> str:
    import jax

    device = jax.devices()[0]
    return device.platform if device.platform == "cpu" else f"{device.platform} {device.device_kind}"


def _jax_memory() -> dict[str, int]:
    import jax

    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {} if peak is None else {"device_memory_bytes": peak}


def _torch_device() -> tuple[Any, Callable[[], None]]:
    """The device, and how to wait for it. On a GPU with JAX's settings: tensor cores for float32, kernels by trial."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu"), lambda: None
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda"), torch.cuda.synchronize


def _torch_name(device: Any) -> str:
    import torch

    return "cpu" if device.type == "cpu" else f"gpu {torch.cuda.get_device_name(device)}"


def _torch_memory(device: Any) -> dict[str, int]:
    import torch

    return {} if device.type == "cpu" else {"device_memory_bytes": torch.cuda.max_memory_allocated(device)}
