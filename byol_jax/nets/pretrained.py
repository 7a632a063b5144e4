"""An encoder that starts from weights that exist already, whatever made them: a file, a run, another encoder."""

from typing import Any

from byol_jax.types import Encoder, Variables

__all__ = ["with_variables"]


def with_variables(encoder: Encoder, variables: Variables) -> Encoder:
    """`encoder` with an `init` that returns `variables`, whatever the key.

    Args:
        encoder: any encoder.
        variables: of the same structure as its own, e.g. from `interop.from_torch_state_dict`.

    Example:
        >>> import jax, byol_jax
        >>> encoder = byol_jax.nets.small_cnn()
        >>> pretrained = encoder.init(jax.random.key(7), (16, 16, 1))
        >>> encoder = with_variables(encoder, pretrained)
        >>> encoder.init(jax.random.key(0), (16, 16, 1)) is pretrained
        True
    """

    def init(key: Any, image_shape: tuple[int, ...]) -> Variables:
        return variables

    return encoder._replace(init=init)
