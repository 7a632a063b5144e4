"""The contenders: each builds its training step, or its matrix multiply, and hands it over as a plain function.

A step returns when all of its results are there. Nothing is timed here. Each contender runs in a process of its own, so
frameworks are imported inside the functions.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.harness.workloads import LEARNING_RATE, Resnet, Workload, from_json

__all__ = [
    "CONTENDERS",
    "PEAKS",
    "Contender",
    "Stopwatch",
    "available",
    "build",
    "build_module",
    "jax_device",
    "jax_step",
    "workload_learner",
]

LARGER_ON_ACCELERATORS = 4
"""A GPU multiplies 2048² in well under a millisecond, which measures the launch as much as the product."""


class Contender(NamedTuple):
    """Something to be timed.

    Attributes:
        step: does the work once and waits for the result.
        device: "cpu", or another kind and its name.
        facts: called after the work; gives the last `loss`, `flops`, `device_memory_bytes`, as far as known, as JSON.
        phases: seconds by what was done before the first step, in that order: "import", "network", "trace", "verify",
            "state", "compile"; those that there are.
    """

    step: Callable[[], None]
    device: str
    facts: Callable[[], dict[str, Any]]
    phases: Mapping[str, float] = MappingProxyType({})


class Stopwatch:
    """Seconds since the last call, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def byol_jax(workload: Workload) -> Contender:
    """This project with its own network, as in its README: `jax.jit(learner.step, donate_argnums=0)`."""
    watch = Stopwatch()
    from byol_jax import nets

    assert isinstance(workload.network, Resnet), "only ResNets are written in JAX too"
    encoder = nets.resnet(workload.network.stages, block=workload.network.block)
    watch.lap("import")
    return _jax_step(encoder, workload, watch)


def byol_jax_traced(workload: Workload) -> Contender:
    """This project with the torch module, traced and compared with torch, as `from_torch_module` does it by default."""
    watch = Stopwatch()
    import torch

    from interop.trace import encoder as traced
    from interop.trace.export import example_batch
    from interop.trace.fixed_draws import FIXED_DRAWS
    from interop.trace.verification.verify import verify_encoder

    watch.lap("import")
    module = build_module(workload)
    watch.lap("network")
    encoder = traced.from_torch_module(module, image_size=workload.image_size, verify=False)
    watch.lap("trace")
    network = encoder.facts.traced
    example = example_batch(torch, module, workload.image_size, 3, None)
    variables = traced.module_variables(module, network.traced)
    verify_encoder(module, traced.network_encoder(network, variables, stand_ins=FIXED_DRAWS), example, variables)
    watch.lap("verify")
    return _jax_step(encoder, workload, watch)


def _jax_step(encoder: Any, workload: Workload, watch: Stopwatch) -> Contender:
    import jax

    train, state, images = jax_step(encoder, workload)
    jax.block_until_ready((images, state))
    watch.lap("state")
    now: dict[str, Any] = {"state": state, "metrics": {}}
    compiled = train.lower(state, images).compile()
    watch.lap("compile")

    def step() -> None:
        now["state"], now["metrics"] = jax.block_until_ready(compiled(now["state"], images))

    def facts() -> dict[str, Any]:
        return {"loss": float(now["metrics"]["loss"]), **_jax_memory()}

    return Contender(step, jax_device(), facts, watch.seconds)


def jax_step(encoder: Any, workload: Workload, **options: Any) -> tuple[Any, Any, Any]:
    """The jitted step of `workload` around `encoder`, a state and images for it; `options` as in `workload_learner`."""
    import jax

    learner = workload_learner(encoder, workload, **options)
    shape = (workload.batch_size, workload.image_size, workload.image_size, 3)
    images = jax.random.uniform(jax.random.key(1), shape)
    return jax.jit(learner.step, donate_argnums=0), learner.init(jax.random.key(0)), images


def workload_learner(encoder: Any, workload: Workload, **options: Any) -> Any:
    """The learner of `workload` around `encoder`; `options` are more of `make_learner`'s."""
    import optax

    from byol_jax import make_learner

    return make_learner(
        encoder,
        image_size=workload.image_size,
        hidden_layer=workload.hidden_layer,
        projection_size=workload.projection_size,
        projection_hidden_size=workload.projection_hidden_size,
        augment_fn=lambda key, image: image,
        optimizer=optax.adam(LEARNING_RATE),
        **options,
    )


def byol_pytorch(workload: Workload, *, layout: str, compiled: bool = False) -> Contender:
    """byol-pytorch, as in its README; `layout` is torch's "contiguous_format" (NCHW) or "channels_last".

    `compiled`: by `torch.compile`, which needs a C++ compiler on a CPU.
    """
    watch = Stopwatch()
    import torch
    from byol_pytorch import BYOL

    watch.lap("import")
    device, synchronise = _torch_device()
    memory_format = {"contiguous_format": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    net = build_module(workload).to(device=device, memory_format=memory_format)  # pyright: ignore
    watch.lap("network")
    learner = BYOL(
        net,
        image_size=workload.image_size,
        hidden_layer=workload.hidden_layer,  # pyright: ignore[reportArgumentType]  its default is a number
        projection_size=workload.projection_size,
        projection_hidden_size=workload.projection_hidden_size,
        augment_fn=torch.nn.Identity(),
        use_simplicial_embeddings=False,
        sync_batchnorm=False,
    )
    optimizer = torch.optim.Adam(learner.parameters(), lr=LEARNING_RATE)
    images = torch.rand(workload.batch_size, 3, workload.image_size, workload.image_size)
    images = images.to(device=device, memory_format=memory_format)
    forward = torch.compile(learner) if compiled else learner
    watch.lap("state")
    now: dict[str, Any] = {}

    def step() -> None:
        now["loss"] = forward(images)
        optimizer.zero_grad()
        now["loss"].backward()
        optimizer.step()
        learner.update_moving_average()
        synchronise()

    return Contender(
        step, _torch_name(device), lambda: {"loss": now["loss"].item(), **_torch_memory(device)}, watch.seconds
    )


def build_module(workload: Workload) -> Any:
    """The workload's torch module, always with the same random weights."""
    import torch

    torch.manual_seed(0)
    if isinstance(workload.network, str):
        from interop.trace.modules import torch_module

        return torch_module(workload.network, image_size=workload.image_size)
    from torchvision.models import resnet

    block = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}[workload.network.block]
    return resnet.ResNet(block, list(workload.network.stages))


def jax_matmul(workload: Workload) -> Contender:
    """The product of two square float32 matrices in JAX."""
    import jax
    import jax.numpy as jnp

    size = workload.matmul_size * (1 if jax_device() == "cpu" else LARGER_ON_ACCELERATORS)
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))  # [size, size] each
    multiply = jax.jit(jnp.matmul)
    return Contender(lambda: multiply(a, b).block_until_ready(), jax_device(), lambda: {"flops": 2 * size**3})


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
    "compiled": partial(byol_pytorch, layout="channels_last", compiled=True),
}
"""By name: byol_jax with its own network and with a traced torch module; byol-pytorch in two memory layouts, and the
second of them compiled by torch."""

PEAKS = {"jax": jax_matmul, "torch": torch_matmul}
"""Matrix multiplies that show the fastest that a framework computes on this machine."""


def available(names: list[str], workload: Workload) -> list[str]:
    """Those that can run the workload: `byol_jax` has ResNets only."""
    return [name for name in names if name != "byol_jax" or isinstance(workload.network, Resnet)]


def build(name: str, fields: dict[str, Any]) -> Contender:
    """The contender with this `name`, or for "peak NAME" the peak NAME, ready for its first step of a workload."""
    peak = name.removeprefix("peak ")
    return (CONTENDERS[name] if peak == name else PEAKS[peak])(from_json(fields))


def jax_device() -> str:
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
