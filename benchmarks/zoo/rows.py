"""The zoo: which networks are traced and compared, at which image size. Plain data, cheap ones first.

torchvision: all classifiers of `list_models` whose weights fit into memory 8 times, in float64. timm: the smallest
member of every file of `timm.models`, without its `test_…` members and without two files whose smallest has over 150
million parameters (deepseek_vit, gemma4_vit). Images are as small as the network takes, so that a row takes seconds;
nothing is downloaded.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from byol_jax.errors import ConfigurationError

__all__ = ["ROWS", "SAMPLE", "TIMM", "TORCHVISION", "Row", "build", "row_named"]


class Row(NamedTuple):
    """One network.

    Attributes:
        name: "library:name", as the library's own `get_model` or `create_model` knows it.
        size: H = W of the images.
        options: keyword arguments of that call.
        layer: what to compare as output where the network's own isn't one tensor in training.
    """

    name: str
    size: int = 64
    options: Mapping[str, Any] = {}
    layer: str | int = -1


def build(row: Row) -> Any:
    """The module with random weights, always the same."""
    import random

    import torch

    library, _, name = row.name.partition(":")
    random.seed(0)
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **row.options)
    from torchvision import models

    return models.get_model(name, weights=None, **row.options)


def row_named(name: str) -> Row:
    """The row of that name; the library may be left out where only one has the name.

    Raises:
        ConfigurationError: no row has the name, or two have.
    """
    found = [row for row in ROWS if name in (row.name, row.name.partition(":")[2])]
    if len(found) != 1:
        raise ConfigurationError(f"{name}: expected one of benchmarks/zoo/rows.py, such as torchvision:resnet18")
    return found[0]


def _torchvision(*names: str, size: int = 64) -> tuple[Row, ...]:
    return tuple(Row(f"torchvision:{name}", size) for name in names)


def _timm(*names: str, size: int = 64, fixed: bool = False) -> tuple[Row, ...]:
    """`fixed`: the networks are built for one size of images."""
    return tuple(Row(f"timm:{name}", size, {"img_size": size} if fixed else {}) for name in names)


TORCHVISION = (
    *_torchvision("squeezenet1_0", "squeezenet1_1", "resnet18", "shufflenet_v2_x0_5", "mnasnet0_5"),
    *_torchvision("mobilenet_v3_small", "mobilenet_v2", "shufflenet_v2_x1_0", "mnasnet0_75", "regnet_x_400mf"),
    *_torchvision("regnet_y_400mf", "resnet34", "resnet50", "resnext50_32x4d", "convnext_tiny", "mobilenet_v3_large"),
    *_torchvision("shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "mnasnet1_0", "mnasnet1_3", "efficientnet_b0"),
    Row("torchvision:googlenet", 64, {"init_weights": False}, "fc"),
    *_torchvision("swin_t", "swin_v2_t", "densenet121", "efficientnet_b1", "efficientnet_b2", "regnet_x_800mf"),
    *_torchvision("regnet_y_800mf", "regnet_x_1_6gf", "regnet_y_1_6gf", "regnet_x_3_2gf", "regnet_y_3_2gf"),
    Row("torchvision:inception_v3", 96, {"init_weights": False, "aux_logits": False}),
    *_torchvision("resnet101", "efficientnet_b3", "efficientnet_v2_s", "alexnet", "wide_resnet50_2", "densenet169"),
    Row("torchvision:vit_b_32", 64, {"image_size": 64}),
    Row("torchvision:vit_b_16", 64, {"image_size": 64}),
    *_torchvision("convnext_small", "densenet201", "efficientnet_b4", "regnet_x_8gf", "regnet_y_8gf", "swin_s"),
    *_torchvision("swin_v2_s", "densenet161", "resnet152", "efficientnet_b5", "regnet_x_16gf", "efficientnet_v2_m"),
    *_torchvision("vgg11", "vgg11_bn", size=32),
    Row("torchvision:maxvit_t", 224),
    *_torchvision("efficientnet_b6", "resnext101_64x4d", "regnet_y_16gf", "convnext_base", "efficientnet_b7"),
    *_torchvision("resnext101_32x8d", "swin_b", "swin_v2_b"),
    *_torchvision("vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", size=32),
)

TIMM = (
    *_timm("starnet_s050", "dla46x_c", "edgenext_xx_small", "mobilevit_xxs", "mobilenetv3_small_050", "regnetx_002"),
    *_timm("efficientvit_m0", "repghostnet_050", "ghostnet_050", "cspnext_tiny", "iformer_t", "cs3darknet_focus_s"),
    *_timm("efficientvit_b0", "swiftformer_xs", "convnext_atto", "pvt_v2_b0", "fasternet_t0", "fastvit_t8"),
    *_timm("ese_vovnet19b_slim_dw", "lcnetv2_small", "inception_next_atto", "mobileone_s1", "rexnet_100"),
    *_timm("hardcorenas_b", "efficientnet_b0", "resnet10t", "repvit_m1", "hgnetv2_b0", "shvit_s1", "cpubone_nano"),
    *_timm("deit_tiny_patch16_224", "pit_ti_224", "coat_tiny", "gmlp_ti16_224", "convit_tiny", fixed=True),
    *_timm("vit_tiny_patch16_224", "xcit_nano_12_p8_224", "efficientformerv2_s0", "levit_128s", fixed=True),
    *_timm("vit_relpos_small_patch16_224", "vit_tiny_r_s16_p8_224", "maxvit_pico_rw_256", fixed=True),
    *_timm("vit_tiny_patch16_dinov3_qkvb", "crossvit_tiny_240", "efficientvim_m1", "mambaout_femto", "densenet121"),
    *_timm(
        "nf_regnet_b0", "dpn48b", "resnest14d", "lambda_resnet26t", "resnetv2_18", "legacy_seresnet18", "skresnet18"
    ),
    *_timm("csatv2", "poolformerv2_s12", "tiny_vit_5m_224", "hrnet_w18_small", "lowformer_b0", "convmixer_768_32"),
    *_timm("cait_xxs24_224", "gcvit_xxtiny", "visformer_tiny", "nest_tiny", "tnt_s_patch16_224", fixed=True),
    *_timm("hiera_tiny_224", "volo_d1_224", "vitamin_small_224", "swin_tiny_patch4_window7_224", fixed=True),
    *_timm("swinv2_tiny_window8_256", "swinv2_cr_tiny_224", fixed=True),
    *_timm("rdnet_tiny", "twins_svt_small", "mvitv2_tiny", "res2next50", "hieradet_small", "sequencer2d_s"),
    *_timm("focalnet_tiny_srf", "davit_tiny", "selecsls42", "tresnet_m", "nextvit_small"),
    *_timm("inception_v3", "legacy_xception", "xception41", "inception_v4", "inception_resnet_v2", size=96),
    *_timm("efficientformer_l1", size=224),
    *_timm("beit_base_patch16_224", "samvit_base_patch16_224", fixed=True),
    *_timm("naflexvit_base_patch16_gap", "qwen3_vit_88m", "mobilenetv5_base"),
    *_timm("halonet_h1", size=256),
    *_timm("pnasnet5large", "nasnetalarge", "vgg11"),
)

ROWS = tuple(row for pair in zip_longest(TORCHVISION, TIMM) for row in pair if row is not None)
"""Rows of the two libraries in turn."""

SAMPLE = (
    *("squeezenet1_1", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "googlenet"),
    *("starnet_s050", "mobilevit_xxs", "ghostnet_050", "pvt_v2_b0", "convnext_atto", "resnet10t", "nf_regnet_b0"),
    *("deit_tiny_patch16_224", "gmlp_ti16_224", "levit_128s", "poolformerv2_s12", "crossvit_tiny_240"),
)
"""The tenth that continuous integration measures each time: cheap, and of all kinds."""
