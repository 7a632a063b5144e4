"""A torch module of three input channels made one of any number, and what timm did to its own weights for that.

Only the first convolution changes. Weights follow `interop.weights.first_layer`; random ones are drawn anew, as torch's
own layer draws them: a copy of the colours' would begin with channels that can't be told apart.
"""

from typing import Any

from byol_jax.errors import ConfigurationError
from interop.arrays import import_torch
from interop.errors import warn_caller
from interop.weights.first_layer import COLOURS, InflatedInputWarning, inflate, inflation_in_words

__all__ = ["say_what_timm_did", "with_input_channels"]


def with_input_channels(name: str, module: Any, channels: int, *, has_weights: bool) -> Any:
    """`module`, its first convolution replaced by one of `channels` input channels.

    Args:
        name: what the module is called in messages.
        module: changed in place; the first of its convolutions in the order of definition has 3 input channels.
        has_weights: whether its weights were trained, and are inflated; else the new layer's are torch's default.

    Warns:
        InflatedInputWarning: trained weights were.

    Raises:
        ConfigurationError: no such convolution, or one behind a change of red, green and blue.
    """
    torch = import_torch()
    convolutions = (pair for pair in module.named_modules() if isinstance(pair[1], torch.nn.Conv2d))
    path, old = next(convolutions, ("", None))
    if old is None or old.in_channels != COLOURS or old.groups != 1:
        raise ConfigurationError(
            f"{name}: has no first convolution of {COLOURS} channels to make one of {channels}: use a network of timm,"
            " or a factory of your own"
        )
    if getattr(module, "transform_input", False):
        raise ConfigurationError(
            f"{name}: with these weights it changes red, green and blue before its first convolution, so it can't take"
            f" {channels} channels: use another network"
        )
    options = {key: getattr(old, key) for key in ("stride", "padding", "dilation", "padding_mode")}
    new = torch.nn.Conv2d(channels, old.out_channels, old.kernel_size, bias=old.bias is not None, **options)
    if has_weights:
        with torch.no_grad():
            new.weight.copy_(torch.from_numpy(inflate(old.weight.numpy(force=True), channels)))
            if old.bias is not None:
                new.bias.copy_(old.bias)
        warn_caller(InflatedInputWarning(f"{name}: {inflation_in_words(f'{path}.weight', channels)}"))
    module.set_submodule(path, new)
    return module


def say_what_timm_did(name: str, module: Any, channels: int) -> None:
    """Says that timm has inflated, or left random, the first layers of a module with weights for other channels.

    timm itself says so in its log alone.

    Warns:
        InflatedInputWarning: where the weights' channels are others than the images'.
    """
    facts = getattr(module, "pretrained_cfg", None) or {}
    trained = (facts.get("input_size") or (COLOURS,))[0]
    if trained == channels:
        return
    first = facts.get("first_conv") or ()
    for path in (first,) if isinstance(first, str) else first:
        weight = module.get_submodule(path).weight
        said = inflation_in_words(f"{path}.weight", channels, trained=trained)
        if weight.ndim != 4 or (channels > 1 and weight.shape[1] != channels):
            said = f"timm can't make {path}.weight, for {trained} channels, fit {channels}: it starts random"
        warn_caller(InflatedInputWarning(f"{name}: {said}"))
