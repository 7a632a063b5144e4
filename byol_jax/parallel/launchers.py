"""Which processes train together: those that were named, or those that something started beside this one.

`byol-jax train` and `parallel.initialize` both ask here. Read are variables that SLURM, Open MPI, TPU pods and
Kubernetes set, and on a TPU machine its metadata server. How the processes meet is left to jax.distributed, which knows
the same four: see processes.py. Of MPICH, Intel MPI and torchrun, which it doesn't know, the numbers are taken, and
where process 0 is has to be said.
"""

import contextlib
import glob
import http.client
import importlib.util
import re
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from byol_jax.errors import ConfigurationError

__all__ = ["ALONE", "Given", "Launch", "Processes", "as_argument", "complete", "find_launch", "find_processes"]

SLURM_STEP = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
"""What srun sets for each of its processes, and what jax.distributed looks for; a batch script has a part of them."""

OPEN_MPI_ADDRESS = "OMPI_MCA_orte_hnp_uri"
"""Where mpirun itself listens, by which jax.distributed finds process 0. Open MPI 5 no longer sets it: issue 14576 of
jax-ml/jax."""

OPEN_MPI_DEVICE = "OMPI_COMM_WORLD_LOCAL_RANK"
"""JAX takes the GPU of this number too, but not with Open MPI 5, which it doesn't see: there each would take all."""

OTHERS = (
    ("mpiexec of MPICH or Intel MPI", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    ("torchrun", "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
)
"""What jax.distributed doesn't know, and its variables: how many processes there are, which this one is, and the same
on this machine. As mpich 5.0.2's mpiexec and torch 2.14.1's torchrun set them."""

JAX_ADDRESS, JAX_DEVICES = "JAX_COORDINATOR_ADDRESS", "JAX_LOCAL_DEVICE_IDS"
"""What jax.distributed takes before anything that a launcher says."""

PCI_VENDORS, GOOGLE = "/sys/bus/pci/devices/*/vendor", "0x1ae0"
"""How JAX sees whether a machine may have TPU chips."""

METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"
METADATA_SECONDS = 5


class Given(NamedTuple):
    """The three arguments of `parallel.initialize`, or options of `byol-jax train`; None: not given."""

    count: int | None = None
    number: int | None = None
    address: str | None = None


class Launch(NamedTuple):
    """What started this process, and how many beside it.

    Attributes:
        name: of what started them.
        count, number: how many there are and which this one is; None: only jax.distributed finds out.
        has_address: whether jax.distributed finds out where process 0 is.
        all_devices: whether each takes all devices that it sees: it has a machine to itself, or is shown one GPU alone.
            JAX would take the one with the process's number on its machine. Not where JAX's own variable names some.
        device: the one with the process's number on its machine, where JAX may not find it; None: JAX finds it.
        remark: what a person should know.
    """

    name: str
    count: int | None
    number: int | None
    has_address: bool = True
    all_devices: bool = False
    device: int | None = None
    remark: str = ""


class Processes(NamedTuple):
    """Who trains together.

    Attributes:
        count, number, address: as for `parallel.initialize`.
        found_by: what started them, or this one alone; empty where what is given says it all, or nothing is known.
        all_devices, device: as in `Launch`.
        remark: a line for a person; empty for none.
    """

    count: int | None
    number: int | None
    address: str | None = None
    found_by: str = ""
    all_devices: bool = False
    device: int | None = None
    remark: str = ""


ALONE = Processes(1, 0)


def as_argument(name: str, value: Any = None) -> str:
    """How a message speaks of an argument, as someone who writes Python knows it.

    Example:
        >>> as_argument("num_processes"), as_argument("num_processes", 1)
        ('num_processes', 'num_processes=1')
    """
    return name if value is None else f"{name}={value!r}"


def find_processes(given: Given, environ: Mapping[str, str], *, spell: Callable[..., str] = as_argument) -> Processes:
    """Who trains together, by what is given and by the environment of this process.

    Args:
        environ: `os.environ`.
        spell: how messages name arguments; the command line has them as options.

    Raises:
        ConfigurationError: as `complete` and `find_launch`.

    Example:
        >>> find_processes(Given(), {"SLURM_JOB_ID": "7"}) == ALONE._replace(found_by="SLURM")
        True
    """
    if given.address is None and None not in (given.count, given.number):
        given = given._replace(address=environ.get(JAX_ADDRESS) or None)
    return complete(given, None if given.count == 1 else find_launch(environ), spell=spell)


def complete(given: Given, launch: Launch | None, *, spell: Callable[..., str] = as_argument) -> Processes:
    """Who trains together. What is given wins; what is left out is what the launcher says.

    Raises:
        ConfigurationError: what is given doesn't fit together, or contradicts the launcher while it leaves something to
            it; or something is said by neither; or the launcher contradicts itself.

    Example:
        >>> complete(Given(), Launch("SLURM", 4, 3)).number
        3
        >>> complete(Given(count=1, number=0), Launch("SLURM", 4, 3)) == ALONE
        True
    """
    count, number, address = given
    if count is not None and number is not None and number >= count:
        raise ConfigurationError(f"{spell('process_id', number)} must be below {spell('num_processes', count)}")
    if count == 1:
        return ALONE
    if None not in given:
        whole = Processes(*given)
        return whole if launch is None else whole._replace(all_devices=launch.all_devices, device=launch.device)
    if launch is not None:
        _check_numbers(launch, spell)
    if launch is None or launch.count == 1:
        if given != Given():
            raise ConfigurationError(_lacking(given, spell))
        return ALONE if launch is None else ALONE._replace(found_by=launch.name, remark=launch.remark)
    _check_agreement(given, launch, spell)
    if address is None and not launch.has_address:
        raise ConfigurationError(
            f"{launch.name} started {launch.count} processes and doesn't say where process 0 is: give all of them"
            f" {spell('coordinator_address', 'HOST:PORT')}, its host and a free port; or {spell('num_processes', 1)} to"
            " train alone"
        )
    count = launch.count if count is None else count
    number = launch.number if number is None else number
    return Processes(count, number, address, launch.name, launch.all_devices, launch.device)


def _check_numbers(launch: Launch, spell: Callable[..., str]) -> None:
    count, number = launch.count, launch.number
    if count is not None and number is not None and not 0 <= number < count:
        raise ConfigurationError(
            f"{launch.name} says that this is process {number} of {count}, counted from 0: its variables are of another"
            f" job; give {spell('num_processes', 1)} to train alone"
        )


def _lacking(given: Given, spell: Callable[..., str]) -> str:
    named, needed = {"process_id": given.number, "coordinator_address": given.address}, spell("num_processes")
    if given.count is None:
        return "; ".join(f"{spell(name)} needs {needed}" for name, value in named.items() if value is not None)
    lacking = [spell(name) for name, value in named.items() if value is None]
    return f"{spell('num_processes', given.count)} needs {' and '.join(lacking)}"


def _check_agreement(given: Given, launch: Launch, spell: Callable[..., str]) -> None:
    said = {"num_processes": (given.count, launch.count), "process_id": (given.number, launch.number)}
    for name, (value, found) in said.items():
        if value is not None and found not in (None, value):
            raise ConfigurationError(
                f"{spell(name, value)}, but {launch.name} says {found}: give {spell('num_processes')},"
                f" {spell('process_id')} and {spell('coordinator_address')}, or none of them"
            )


def find_launch(environ: Mapping[str, str]) -> Launch | None:
    """What started this process with others; None: nothing that is known.

    Looked for in the order in which jax.distributed looks, and then what that doesn't know.

    Raises:
        ConfigurationError: its variables aren't numbers.

    Example:
        >>> find_launch({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}).count
        2
    """
    found = None
    for look in (_open_mpi, _slurm, _tpu_pod, _kubernetes, _others):
        launch = look(environ)
        if launch is not None and launch.count != 1:
            found = launch
            break
        found = found or launch  # a job of one process may hold torchrun, which starts several
    if found is None or not environ.get(JAX_DEVICES):
        return found
    return found._replace(all_devices=False, device=None)


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    if not {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"} <= environ.keys():
        return None
    count, number = (_integer(environ, f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK"))
    all_devices = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or _is_shown_one_gpu(environ)
    has_address = OPEN_MPI_ADDRESS in environ or bool(environ.get(JAX_ADDRESS))
    device = _integer(environ, OPEN_MPI_DEVICE) if OPEN_MPI_DEVICE in environ else None
    return Launch("Open MPI", count, number, has_address=has_address, all_devices=all_devices, device=device)


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    """The step counts, not the job: a shell in an allocation of four tasks is a step of one, and waits for nobody."""
    if "SLURM_JOB_ID" not in environ:
        return None
    tasks = _integer(environ, "SLURM_NTASKS") if "SLURM_NTASKS" in environ else 1
    if not all(name in environ for name in SLURM_STEP):
        return Launch("SLURM", 1, 0, all_devices=True, remark=_said_of_slurm(tasks))
    count = _integer(environ, "SLURM_STEP_NUM_TASKS") if "SLURM_STEP_NUM_TASKS" in environ else tasks
    if count == 1:
        return Launch("SLURM", 1, 0, all_devices=True, remark=_said_of_slurm(tasks))
    machines = re.sub(r"\(x\d+\)", "", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))  # 1(x3) is 1,1,1
    all_devices = set(machines.split(",")) == {"1"} or _is_shown_one_gpu(environ)
    return Launch("SLURM", count, _integer(environ, "SLURM_PROCID"), all_devices=all_devices)


def _is_shown_one_gpu(environ: Mapping[str, str]) -> bool:
    """As with srun --gpus-per-task=1, where process 3 of a machine would look for GPU 3 and see GPU 0: issue 28194."""
    shown = environ.get("CUDA_VISIBLE_DEVICES", "")
    return shown not in ("", "-1", "NoDevFiles") and "," not in shown


def _said_of_slurm(tasks: int) -> str:
    if tasks == 1:
        return ""
    return (
        f"SLURM gave the job {tasks} tasks, and this process was started by itself: it trains alone;"
        f" srun -n {tasks} in front of the command trains in all of them"
    )


def _tpu_pod(environ: Mapping[str, str]) -> Launch | None:
    """On Google Kubernetes Engine the variables say which hosts there are, elsewhere the machine's metadata server."""
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    slices = environ.get("MEGASCALE_NUM_SLICES")
    if hosts is None:
        if "TPU_SKIP_MDS_QUERY" in environ or not _may_have_chips():
            return None
        server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
        hosts = _ask(server, "worker-network-endpoints")
        found = re.search(r"^\s*MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _ask(server, "tpu-env"), re.MULTILINE)
        slices = slices or (found and found[1])
    several = "," in hosts or (slices or "1") != "1"
    return Launch("a TPU pod", None, None, all_devices=True) if several else None


def _may_have_chips() -> bool:
    for path in glob.glob(PCI_VENDORS):
        with contextlib.suppress(OSError):  # of a container that may not look
            if Path(path).read_text().strip() == GOOGLE:
                return True
    return False


def _ask(server: str, attribute: str) -> str:
    """What the metadata server says; nothing where there is none, or it doesn't know."""
    request = urllib.request.Request(METADATA.format(server, attribute), headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=METADATA_SECONDS) as answer:
            return answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


def _kubernetes(environ: Mapping[str, str]) -> Launch | None:
    """A pod of an indexed job; any other pod, a notebook's for instance, trains alone."""
    if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environ.keys():
        return None
    if importlib.util.find_spec("kubernetes") is None:
        return Launch(
            "Kubernetes", 1, 0, remark="a pod of an indexed job trains alone without the package kubernetes: jax[k8s]"
        )
    return Launch("Kubernetes", None, None)


def _others(environ: Mapping[str, str]) -> Launch | None:
    """Launchers that say how many processes there are and which this one is, and leave it to a library to meet."""
    for name, count, number, local_count, device in OTHERS:
        if {count, number} <= environ.keys() and _integer(environ, count) > 1:
            return Launch(
                name,
                _integer(environ, count),
                _integer(environ, number),
                has_address=bool(environ.get(JAX_ADDRESS)),
                all_devices=environ.get(local_count) == "1" or _is_shown_one_gpu(environ),
                device=_integer(environ, device) if device in environ else None,
            )
    return None


def _integer(environ: Mapping[str, str], name: str) -> int:
    word = environ[name]
    if not word.isdecimal():
        raise ConfigurationError(f"{name}={word!r} in the environment: expected a whole number; unset it")
    return int(word)
