"""What a load or a save says without refusing: the state is right, but something beside it isn't as it was.

Each is a category of Python's warnings, for those who want to make it an error or to silence it.
"""

__all__ = ["AbsentHeadsWarning", "AbsentTargetWarning", "EmbeddingsWarning", "PaddingWarning", "StemWarning"]


class AbsentHeadsWarning(UserWarning):
    """A file holds a network alone; the projector and the predictor are those of the state it is loaded into."""


class AbsentTargetWarning(UserWarning):
    """A file holds no target network; the online network's copy stands in its place."""


class EmbeddingsWarning(UserWarning):
    """byol-pytorch 0.9.0's simplicial embeddings stand where nothing here has any; projections and losses differ."""


class PaddingWarning(UserWarning):
    """The network pads otherwise than the one that the weights were trained in."""


class StemWarning(UserWarning):
    """The network has another activation behind its stem than the one that the weights were trained in."""
