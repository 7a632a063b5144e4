from .drivers import jit as jit
from .drivers import pmap as pmap
from .drivers import shard_map as shard_map
from .placement import gather as gather
from .placement import replicate as replicate
from .placement import shard as shard
from .placement import split as split
from .placement import spread_state as spread_state
from .placement import stack as stack
from .placement import unstack as unstack
from .processes import agreement as agreement
from .processes import check_same as check_same
from .processes import initialize as initialize
from .processes import is_writer as is_writer
from .processes import wait_for_all as wait_for_all
from .sharding import AXIS as AXIS
from .sharding import make_mesh as make_mesh
from .sharding import state_bytes as state_bytes
from .sharding import state_shardings as state_shardings

__all__ = [
    "AXIS",
    "agreement",
    "check_same",
    "gather",
    "initialize",
    "is_writer",
    "jit",
    "make_mesh",
    "pmap",
    "replicate",
    "shard",
    "shard_map",
    "split",
    "spread_state",
    "stack",
    "state_bytes",
    "state_shardings",
    "unstack",
    "wait_for_all",
]
