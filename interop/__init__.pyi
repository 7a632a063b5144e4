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
from .inspect.commands import convert_file as convert_file
from .learners.checkpoint import load_byol_checkpoint as load_byol_checkpoint
from .learners.checkpoint import save_byol_checkpoint as save_byol_checkpoint
from .optimizers.state import from_torch_opt_state as from_torch_opt_state
from .optimizers.state import to_torch_opt_state as to_torch_opt_state
from .trace.checks import check as check
from .trace.checks import missing_ops as missing_ops
from .trace.encoder import from_torch_module as from_torch_module
from .trace.modules import find_module as find_module
from .trace.ops.table import register_op as register_op
from .trace.saved import load_network as load_network
from .trace.saved import save_network as save_network
from .weight_file import WeightFile as WeightFile
from .weight_file import encoder_state_dict as encoder_state_dict
from .weight_file import open_weights as open_weights
from .weights.state_dict import from_torch_state_dict as from_torch_state_dict
from .weights.state_dict import to_torch_state_dict as to_torch_state_dict
from .weights.writeback import update_torch_module as update_torch_module

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
    "WeightFile",
    "check",
    "convert_file",
    "encoder_state_dict",
    "find_module",
    "from_torch_module",
    "from_torch_opt_state",
    "from_torch_state_dict",
    "load_byol_checkpoint",
    "load_network",
    "load_state_dict",
    "missing_ops",
    "open_weights",
    "register_op",
    "save_byol_checkpoint",
    "save_network",
    "save_state_dict",
    "to_torch_opt_state",
    "to_torch_state_dict",
    "update_torch_module",
]
