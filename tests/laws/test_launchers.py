"""Who trains together: what is given, what SLURM, Open MPI, TPU pods and Kubernetes say, and both at once."""

import http.server
import os
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path

import pytest

from byol_jax import ConfigurationError
from byol_jax.parallel import launchers
from byol_jax.parallel.launchers import ALONE, Given, Launch, Processes, complete, find_launch, find_processes
from tests.processes import free_port, open_mpi, slurm

SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
"""What salloc gives to a shell, and sbatch to a script, of a job of four tasks."""

STEP = slurm(0, 4, 61447) | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
"""srun -n 4, on two nodes."""


HYDRA_NAME = "mpiexec of MPICH or Intel MPI"
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}
TORCHRUN = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, None),
        ({"PATH": "/bin", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
        (STEP, Launch("SLURM", 4, 0)),
        (STEP | {"SLURM_PROCID": "3"}, Launch("SLURM", 4, 3)),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, Launch("SLURM", 4, 0, all_devices=True)),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x3),2"}, Launch("SLURM", 4, 0)),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Launch("SLURM", 4, 0)),
        (STEP | {"CUDA_VISIBLE_DEVICES": ""}, Launch("SLURM", 4, 0)),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0"}, Launch("SLURM", 4, 0, all_devices=True)),
        (
            open_mpi(1, 2, 61447) | {"CUDA_VISIBLE_DEVICES": "GPU-8a"},
            Launch("Open MPI", 2, 1, all_devices=True, device=1),
        ),
        (without(STEP, "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"), Launch("SLURM", 4, 0)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "2"}, Launch("SLURM", 2, 0)),
        (slurm(0, 1, 61447), Launch("SLURM", 1, 0, all_devices=True)),
        (SHELL | {"SLURM_NTASKS": "1"}, Launch("SLURM", 1, 0, all_devices=True)),
        ({"SLURM_JOB_ID": "7"}, Launch("SLURM", 1, 0, all_devices=True)),
        (open_mpi(1, 2, 61447), Launch("Open MPI", 2, 1, device=1)),
        (
            open_mpi(1, 2, 61447) | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            Launch("Open MPI", 2, 1, all_devices=True, device=1),
        ),
        (
            without(open_mpi(1, 2, 61447), "OMPI_MCA_orte_hnp_uri"),
            Launch("Open MPI", 2, 1, has_address=False, device=1),
        ),
        (STEP | open_mpi(1, 2, 61447), Launch("Open MPI", 2, 1, device=1)),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Launch("a TPU pod", None, None, all_devices=True)),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, Launch("a TPU pod", None, None, all_devices=True)),
        (
            {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
            Launch("a TPU pod", None, None, all_devices=True),
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (HYDRA, Launch(HYDRA_NAME, 4, 3, has_address=False, device=1)),
        (HYDRA | {"MPI_LOCALNRANKS": "1"}, Launch(HYDRA_NAME, 4, 3, has_address=False, all_devices=True, device=1)),
        (STEP | HYDRA, Launch("SLURM", 4, 0)),
        (HYDRA | {"PMI_SIZE": "1", "PMI_RANK": "0"}, None),
        (TORCHRUN, Launch("torchrun", 8, 5, has_address=False, device=1)),
        (TORCHRUN | {"JAX_COORDINATOR_ADDRESS": "a:1"}, Launch("torchrun", 8, 5, device=1)),
        ({"WORLD_SIZE": "2"}, None),
        (SHELL | TORCHRUN, Launch("torchrun", 8, 5, has_address=False, device=1)),
        (SHELL | HYDRA, Launch(HYDRA_NAME, 4, 3, has_address=False, device=1)),
        (open_mpi(0, 1, 61447) | TORCHRUN, Launch("torchrun", 8, 5, has_address=False, device=1)),
    ],
)
def test_what_started_a_process(variables: dict[str, str], launch: Launch | None) -> None:
    assert find_launch(variables) == launch


@pytest.mark.parametrize(
    "variables",
    [SHELL, SHELL | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, STEP | {"SLURM_STEP_NUM_TASKS": "1"}],
    ids=["salloc", "sbatch without srun", "an interactive step"],
)
def test_a_shell_in_an_allocation_waits_for_nobody_and_says_so(variables: dict[str, str]) -> None:
    launch = find_launch(variables)
    assert launch is not None
    assert launch.count == 1
    found = complete(Given(), launch)
    assert found == ALONE._replace(found_by="SLURM", remark=found.remark)
    assert found.remark.startswith("SLURM gave the job 4 tasks, and this process was started by itself")
    assert "srun -n 4 in front of the command" in found.remark


@pytest.mark.parametrize("launcher", [slurm, open_mpi])
def test_jax_reads_the_same_from_the_environment(launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = pytest.importorskip("jax._src.clusters", reason="JAX's own detection has no public name")
    theirs = {slurm: clusters.SlurmCluster, open_mpi: clusters.OmpiCluster}[launcher]
    for number in range(3):
        variables = launcher(number, 3, 61447)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        launch = find_launch(variables)
        assert launch is not None
        assert (theirs.get_process_count(), theirs.get_process_id()) == (launch.count, launch.number) == (3, number)
        assert theirs.is_env_present()
    if launcher is slurm:  # newer versions of JAX find an address of Open MPI 5 too, which has no such variable
        monkeypatch.delenv("SLURM_STEP_NODELIST")
        assert not theirs.is_env_present(), "then find_launch counts one"


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("installed", [False, True])
def test_a_pod_of_an_indexed_job_is_one_of_several(
    indexed: bool, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: object() if installed else None)
    variables = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"} | ({"JOB_COMPLETION_INDEX": "0"} if indexed else {})
    launch = find_launch(variables)
    if not indexed:
        assert launch is None
    elif installed:
        assert launch == Launch("Kubernetes", None, None)
    else:
        assert launch is not None
        assert launch.count == 1
        assert "jax[k8s]" in launch.remark


@pytest.fixture
def metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine that may have TPU chips, and its metadata server: {attribute: text}, filled by the test."""
    (tmp_path / "vendor").write_text("0x1ae0\n")
    monkeypatch.setattr(launchers, "PCI_VENDORS", str(tmp_path / "vendor"))
    known: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = known.get(self.path.rpartition("/")[2])
            self.send_response(404 if text is None or self.headers["Metadata-Flavor"] != "Google" else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, format: str, *arguments: object) -> None:
            del format, arguments

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield known, {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("known", "several"),
    [
        ({}, False),
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.2"}, False),
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3"}, True),
        ({"worker-network-endpoints": "10.0.0.2", "tpu-env": "ZONE: 'a'\nMEGASCALE_NUM_SLICES: '2'\n"}, True),
        ({"worker-network-endpoints": "10.0.0.2", "tpu-env": "ZONE: 'a'\nMEGASCALE_NUM_SLICES: '1'\n"}, False),
    ],
)
def test_a_tpu_machine_asks_its_metadata_server(metadata, known: dict[str, str], several: bool) -> None:
    texts, variables = metadata
    texts.update(known)
    launch = find_launch(variables)
    assert (launch is not None) == several
    assert find_launch(variables | {"TPU_SKIP_MDS_QUERY": "1"}) is None


def test_no_metadata_server_is_no_pod(metadata) -> None:
    assert find_launch({"GCE_METADATA_IP": "127.0.0.1:1"}) is None


ADDRESS = "10.0.0.1:1234"
LAUNCHES = (None, Launch("SLURM", 2, 1), Launch("SLURM", 1, 0), Launch("a TPU pod", None, None, all_devices=True))


@pytest.mark.parametrize("launch", LAUNCHES)
def test_what_is_given_wins(launch: Launch | None) -> None:
    all_devices = launch is not None and launch.all_devices
    given = Given(3, 2, ADDRESS)
    assert complete(given, launch) == Processes(3, 2, ADDRESS, all_devices=all_devices)
    for number, address in product((None, 0), (None, ADDRESS)):
        assert complete(Given(1, number, address), launch) == ALONE


@pytest.mark.parametrize("given", [Given(), Given(2), Given(None, 1), Given(2, 1), Given(None, None, ADDRESS)])
def test_what_is_left_out_the_launcher_says(given: Given) -> None:
    wanted = Processes(2, 1, given.address, "SLURM")
    assert complete(given, Launch("SLURM", 2, 1)) == wanted
    pod = Launch("a TPU pod", None, None, all_devices=True)  # which says neither before they have met
    assert complete(given, pod) == Processes(*given, "a TPU pod", all_devices=True)


def test_what_jax_is_told_by_its_own_variables_stands() -> None:
    told = {"JAX_COORDINATOR_ADDRESS": ADDRESS, "JAX_LOCAL_DEVICE_IDS": "0,1"}
    alone_on_each = STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
    assert find_processes(Given(), alone_on_each) == Processes(4, 0, None, "SLURM", all_devices=True)
    assert find_processes(Given(), alone_on_each | told) == Processes(4, 0, None, "SLURM")
    assert find_processes(Given(2, 1), told) == Processes(2, 1, ADDRESS)
    assert find_processes(Given(2, 1, "b:1"), told) == Processes(2, 1, "b:1")
    version_5 = without(open_mpi(1, 2, 61447), "OMPI_MCA_orte_hnp_uri")
    assert find_processes(Given(), version_5 | told) == Processes(2, 1, None, "Open MPI")
    assert find_processes(Given(None, None, ADDRESS), version_5) == Processes(2, 1, ADDRESS, "Open MPI", device=1)


@pytest.mark.parametrize(
    ("given", "launch", "words"),
    [
        (Given(3), Launch("SLURM", 2, 1), "num_processes=3, but SLURM says 2"),
        (Given(None, 0), Launch("SLURM", 2, 1), "process_id=0, but SLURM says 1"),
        (Given(2, 2), Launch("SLURM", 2, 1), "process_id=2 must be below num_processes=2"),
        (Given(), Launch("Open MPI", 2, 1, has_address=False), "Open MPI started 2 processes and doesn't say where"),
        (
            Given(),
            find_launch(TORCHRUN),
            "torchrun started 8 processes and doesn't say where process 0 is: give all of",
        ),
        (Given(2), None, "num_processes=2 needs process_id and coordinator_address"),
        (Given(2, 0), Launch("SLURM", 1, 0), "num_processes=2 needs coordinator_address"),
        (Given(None, 0), None, "process_id needs num_processes"),
        (Given(), Launch("SLURM", 2, 2), "SLURM says that this is process 2 of 2"),
        (Given(None, None, ADDRESS), None, "coordinator_address needs num_processes"),
    ],
)
def test_what_does_not_fit_is_one_line(given: Given, launch: Launch | None, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as error:
        complete(given, launch)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "seen"), [("None", "0"), ("[]", "all")])
def test_jax_leaves_out_no_device_where_none_is_named(devices: str, seen: str) -> None:
    """What `all_devices` rests on: under SLURM JAX takes one GPU a process unless it is told which."""
    code = (
        "import jax; jax.config.update('jax_enable_preemption_service', False);"
        f" jax.distributed.initialize(local_device_ids={devices}); print(jax.config.read('jax_cuda_visible_devices'))"
    )
    variables = slurm(0, 1, free_port(61440 + os.getpid() % 4000)) | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout == f"{seen}\n"


def test_looking_loads_nothing() -> None:
    code = (
        "import os, sys; from byol_jax.parallel.launchers import find_launch; find_launch(os.environ);"
        " print(sorted({'jax', 'numpy', 'optax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
