"""What is trained in a benchmark: a network, an image size, a batch and the sizes of the heads. Plain data.

All contenders do equal work: the same torch network, features from the same hidden layer, augmentation off (both views
are the image itself), no simplicial embedding, Adam 3e-4, float32, the target's moving average in the step.
"""

from dataclasses import dataclass
from typing import Any

__all__ = ["LEARNING_RATE", "QUICK", "RESNET_18", "RESNET_50", "WORKLOADS", "Resnet", "Workload", "from_json"]

LEARNING_RATE = 3e-4
"""Adam's, as in byol-pytorch's own example."""


@dataclass(frozen=True)
class Resnet:
    """torchvision's ResNet, which is in `byol_jax.nets` too.

    Attributes:
        stages: blocks in each of the four stages.
        block: "basic" or "bottleneck".
    """

    stages: tuple[int, ...]
    block: str


@dataclass(frozen=True)
class Workload:
    """One training step's network and sizes.

    Attributes:
        name: on the command line and in the table.
        title: in words.
        network: a ResNet, or the name of a torch module as `byol-jax train --network` takes it.
        hidden_layer: the features, by the torch module's name for them; -1 is the output.
        image_size: side in pixels.
        batch_size: images a step, before there are two views of each.
        projection_size, projection_hidden_size: byol-pytorch's defaults.
        matmul_size: side of the square matrices whose product measures the machine's peak on a CPU.
    """

    name: str
    title: str
    network: Resnet | str
    hidden_layer: str | int
    image_size: int
    batch_size: int
    projection_size: int = 256
    projection_hidden_size: int = 4096
    matmul_size: int = 2048


def from_json(fields: dict[str, Any]) -> Workload:
    """The workload that `dataclasses.asdict` and JSON made `fields` of."""
    network = fields["network"]
    if isinstance(network, dict):
        network = Resnet(tuple(network["stages"]), network["block"])
    return Workload(**(fields | {"network": network}))  # pyright: ignore[reportArgumentType]  JSON has no types


RESNET_18 = Resnet((2, 2, 2, 2), "basic")
RESNET_50 = Resnet((3, 4, 6, 3), "bottleneck")

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("resnet18", "ResNet-18, 32 px, batch 64", RESNET_18, "avgpool", 32, 64),
        Workload("resnet50", "ResNet-50, 128 px, batch 8", RESNET_50, "avgpool", 128, 8),
        Workload(
            "mobilenet_v3_small",
            "torchvision's mobilenet_v3_small, 64 px, batch 32",
            "torchvision:mobilenet_v3_small",
            "avgpool",
            64,
            32,
        ),
        Workload(
            "efficientnet_b0",
            "torchvision's efficientnet_b0, 64 px, batch 16",
            "torchvision:efficientnet_b0",
            "avgpool",
            64,
            16,
        ),
        Workload(
            "convnext_atto", "timm's convnext_atto, 64 px, batch 16", "timm:convnext_atto", "head.flatten", 64, 16
        ),
        Workload(
            "shufflenet_v2_x0_5",
            "torchvision's shufflenet_v2_x0_5, 64 px, batch 32",
            "torchvision:shufflenet_v2_x0_5",
            -1,
            64,
            32,
        ),
        Workload(
            "vit_tiny_patch16",
            "timm's vit_tiny_patch16_224, 128 px, batch 16",
            "timm:vit_tiny_patch16_224",
            "fc_norm",
            128,
            16,
        ),
        Workload(
            "regnet_y_400mf",
            "torchvision's regnet_y_400mf, 64 px, batch 16",
            "torchvision:regnet_y_400mf",
            "avgpool",
            64,
            16,
        ),
        Workload("swin_t", "torchvision's swin_t, 64 px, batch 8", "torchvision:swin_t", "avgpool", 64, 8),
    )
}
"""The networks that a user may bring, by kind: residual, depthwise, channel shuffles, groups, attention, windows."""

QUICK = Workload(
    name="quick",
    title="ResNet-10, 32 px, batch 4 (no figures worth keeping)",
    network=Resnet((1, 1, 1, 1), "basic"),
    hidden_layer="avgpool",
    image_size=32,
    batch_size=4,
    projection_size=16,
    projection_hidden_size=32,
    matmul_size=256,
)
"""So small that it only tries the harness."""
