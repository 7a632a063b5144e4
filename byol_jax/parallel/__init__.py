"""Many devices, several processes: one step, driven in three ways, and the moves of arrays that it needs.

    drivers       `jit`, `shard_map` and `pmap` of the step
    sharding      which leaves of a state are spread over the devices; nothing is moved
    placement     states and batches onto the devices, and back
    launchers     which processes train together: what SLURM, Open MPI, TPU pods and Kubernetes say of them
    processes     how they meet, and what they settle among themselves
    exchange      work that they share: what fails in one is raised in all

The step itself is in byol.py; nothing here computes. Names are loaded when they are first used; `__init__.pyi` lists
them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
