from . import augment as augment
from . import checkpoint as checkpoint
from . import data as data
from . import errors as errors
from . import evaluate as evaluate
from . import nets as nets
from . import parallel as parallel
from . import presets as presets
from . import schedules as schedules
from .accumulation import accumulate as accumulate
from .batchnorm_groups import with_batchnorm_groups as with_batchnorm_groups
from .byol import Learner as Learner
from .byol import encoder_variables as encoder_variables
from .byol import make_learner as make_learner
from .ema import ema_update as ema_update
from .errors import ConfigurationError as ConfigurationError
from .errors import DamagedCheckpointError as DamagedCheckpointError
from .errors import DataError as DataError
from .errors import HiddenLayerNotFoundError as HiddenLayerNotFoundError
from .loss import normalized_mse as normalized_mse
from .nets.linen import from_linen as from_linen
from .nets.nnx import from_nnx as from_nnx
from .online_probe import with_online_probe as with_online_probe
from .optim import lars as lars
from .train import pretrain as pretrain
from .types import Encoder as Encoder
from .types import EncoderFacts as EncoderFacts
from .types import LossAux as LossAux
from .types import Outputs as Outputs
from .types import TrainState as TrainState
from .types import Variables as Variables

__version__: str

__all__ = [
    "ConfigurationError",
    "DamagedCheckpointError",
    "DataError",
    "Encoder",
    "EncoderFacts",
    "HiddenLayerNotFoundError",
    "Learner",
    "LossAux",
    "Outputs",
    "TrainState",
    "Variables",
    "accumulate",
    "augment",
    "checkpoint",
    "data",
    "ema_update",
    "encoder_variables",
    "errors",
    "evaluate",
    "from_linen",
    "from_nnx",
    "lars",
    "make_learner",
    "nets",
    "normalized_mse",
    "parallel",
    "presets",
    "pretrain",
    "schedules",
    "with_batchnorm_groups",
    "with_online_probe",
]
