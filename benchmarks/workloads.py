"""What is trained in a benchmark: a residual network, an image size, a batch and the sizes of the heads. Plain data.

All contenders do equal work: torchvision's network with its 7×7 stem and `fc`, features from `avgpool`, augmentation
off (both views are the image itself), no simplicial embedding, Adam 3e-4, float32, the target's moving average in the
step.
"""

from dataclasses import dataclass

__all__ = ["HIDDEN_LAYER", "LEARNING_RATE", "QUICK", "WORKLOADS", "Workload"]

HIDDEN_LAYER = "avgpool"
LEARNING_RATE = 3e-4
"""Adam's, as in byol-pytorch's own example."""


@dataclass(frozen=True)
class Workload:
    """One training step's sizes.

    Attributes:
        name: on the command line and in the table.
        title: in words.
        stages: blocks in each of the four stages.
        block: "basic" or "bottleneck".
        image_size: side in pixels.
        batch_size: images a step, before there are two views of each.
        projection_size, projection_hidden_size: byol-pytorch's defaults.
        matmul_size: side of the square matrices whose product measures the machine's peak on a CPU.
    """

    name: str
    title: str
    stages: tuple[int, ...]
    block: str
    image_size: int
    batch_size: int
    projection_size: int = 256
    projection_hidden_size: int = 4096
    matmul_size: int = 2048


WORKLOADS = {
    "resnet18": Workload("resnet18", "ResNet-18, 32 px, batch 64", (2, 2, 2, 2), "basic", 32, 64),
    "resnet50": Workload("resnet50", "ResNet-50, 128 px, batch 8", (3, 4, 6, 3), "bottleneck", 128, 8),
}

QUICK = Workload(
    name="quick",
    title="ResNet-10, 32 px, batch 4 (no figures worth keeping)",
    stages=(1, 1, 1, 1),
    block="basic",
    image_size=32,
    batch_size=4,
    projection_size=16,
    projection_hidden_size=32,
    matmul_size=256,
)
"""So small that it only tries the harness."""
