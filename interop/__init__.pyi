from .convert import from_torch_state_dict as from_torch_state_dict
from .convert import to_torch_state_dict as to_torch_state_dict
from .errors import CheckpointFormatError as CheckpointFormatError
from .errors import ConversionMismatchError as ConversionMismatchError
from .errors import HiddenLayerNotFoundError as HiddenLayerNotFoundError
from .errors import InteropError as InteropError
from .errors import MissingDependencyError as MissingDependencyError
from .errors import StateDictMismatchError as StateDictMismatchError
from .errors import UnsafeCheckpointError as UnsafeCheckpointError
from .errors import UnsupportedModuleError as UnsupportedModuleError
from .errors import UnsupportedOpError as UnsupportedOpError
from .files import load_state_dict as load_state_dict
from .files import save_state_dict as save_state_dict
from .writeback import update_torch_module as update_torch_module

__all__ = [
    "CheckpointFormatError",
    "ConversionMismatchError",
    "HiddenLayerNotFoundError",
    "InteropError",
    "MissingDependencyError",
    "StateDictMismatchError",
    "UnsafeCheckpointError",
    "UnsupportedModuleError",
    "UnsupportedOpError",
    "from_torch_state_dict",
    "load_state_dict",
    "save_state_dict",
    "to_torch_state_dict",
    "update_torch_module",
]
