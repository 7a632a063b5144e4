"""Two processes with four devices each = one device, as eight devices of one process are (test_drivers.py).

And a process run twice gives the same bits. What the command line makes of it: tests/cli/test_train_processes.py.
"""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from driver_runs import double_and_quickly_compiled, light, whole

from byol_jax import ConfigurationError, parallel
from byol_jax.parallel import launchers
from byol_jax.tree import leaf_names
from tests.processes import free_address, free_port, run_together, slurm

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])


def together(
    out: Path, count: int, devices: int, *drivers: str, double: bool = True, shared: bool = True
) -> list[dict[str, np.ndarray]]:
    """What each of `count` processes with `devices` devices found; they are gone when this returns, however it ends.

    Not `shared`: each compiles for itself.
    """
    out.mkdir()
    address = free_address()
    environment = os.environ | {
        "PYTHONPATH": PATHS,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_X64": str(double),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(double),  # as in double_and_quickly_compiled
        "JAX_ENABLE_COMPILATION_CACHE": str(shared),
    }
    words = [[str(number), str(count), address, str(out), *drivers] for number in range(count)]
    run_together(HERE / "train_in_processes.py", words, environment, timeout=300)
    return [dict(np.load(out / f"{number}.npz")) for number in range(count)]


def named(driver: str, state) -> dict[str, np.ndarray]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return {f"{driver} {name}": leaf for name, leaf in zip(leaf_names(state), leaves, strict=True)}


def check_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, leaf in wanted.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "driver",
    [pytest.param("shard_map", marks=pytest.mark.long), pytest.param("jit", marks=pytest.mark.long(tenth=False))],
)
def test_two_processes_are_one(driver: str, tmp_path: Path) -> None:
    first, second = together(tmp_path / "two", 2, 4, driver)
    assert set(first) == set(second)
    for name in set(first):
        assert first[name].tobytes() == second[name].tobytes(), f"{name} differs between the processes"
    with double_and_quickly_compiled():
        state, rows = whole(augment_fn=light)
    check_equal(first, named(driver, state))
    np.testing.assert_allclose(first[f"{driver} losses"], [row["loss"] for row in rows], rtol=1e-6)  # float32
    assert first["agreed"].tolist() == [False] * 5 + [True, False, False], "wished for at call 3, two calls later"
    assert str(first["refused"]) == "the 2 processes differ in data, seed: give all of them the same command"


@pytest.mark.long(tenth=False)
def test_a_process_run_twice_gives_the_same_bits(tmp_path: Path) -> None:
    (first,), (second,) = (
        together(tmp_path / name, 1, 2, "shard_map", double=False, shared=False) for name in ("a", "b")
    )
    assert len(first) > 30
    for name, leaf in first.items():
        assert leaf.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"process_id": 2}, "process 2 of 2"),
        ({"num_processes": 0}, "of 0"),
        ({"coordinator_address": "here"}, "host:port"),
        ({"coordinator_address": "here:http"}, "host:port"),
        ({"coordinator_address": "here:65536"}, "host:port"),
        ({"timeout_seconds": 0}, "timeout_seconds=0"),
        ({"wait_seconds": 0}, "wait_seconds=0"),
    ],
)
def test_a_wrong_start_is_one_line(changed: dict, words: str) -> None:
    options = {"num_processes": 2, "process_id": 0, "coordinator_address": "127.0.0.1:1"} | changed
    with pytest.raises(ConfigurationError, match=words) as error:
        parallel.initialize(**options)
    assert "\n" not in str(error.value)


def test_a_port_in_use_is_one_line() -> None:
    """JAX would crash."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=r"can't be served here .*in use") as error:
            parallel.initialize(num_processes=2, process_id=0, coordinator_address=address)
    assert "\n" not in str(error.value)


@pytest.fixture
def nothing_joins(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that nothing started processes in; whoever is asked to join some fails."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(launchers, "PCI_VENDORS", "no such file")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("joined nobody"))
    return monkeypatch


def test_where_nothing_started_others_a_process_is_alone_and_says_so(nothing_joins: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="no other processes found to join, so this one is alone") as said:
        parallel.initialize()
    assert len(said) == 1
    assert "num_processes, process_id and coordinator_address" in str(said[0].message)
    assert said[0].filename == __file__


def test_a_shell_in_an_allocation_is_alone_and_says_so(nothing_joins: pytest.MonkeyPatch) -> None:
    nothing_joins.setenv("SLURM_JOB_ID", "7")
    parallel.initialize()  # of one task: there is nothing to say
    nothing_joins.setenv("SLURM_NTASKS", "4")
    with pytest.warns(UserWarning, match="SLURM gave the job 4 tasks, and this process was started by itself"):
        parallel.initialize()


@pytest.mark.slow
@pytest.mark.parametrize(("tasks_of_a_machine", "seen"), [("1(x2)", ["all", "all"]), ("2", ["0", "1"])])
def test_a_script_joins_by_slurms_variables(tasks_of_a_machine: str, seen: list[str]) -> None:
    """Two processes with nothing but what srun sets: who they are, and the GPUs that each would take."""
    code = (
        "import jax; from byol_jax import parallel; parallel.initialize();"
        " print(jax.process_index(), jax.process_count(), jax.config.read('jax_cuda_visible_devices'))"
    )
    port = free_port(61440 + os.getpid() % 4000)
    environment = os.environ | {"PYTHONPATH": PATHS, "JAX_PLATFORMS": "cpu"}
    steps = [slurm(number, 2, port) | {"SLURM_STEP_TASKS_PER_NODE": tasks_of_a_machine} for number in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment | step, **pipes) for step in steps]
    try:
        answers = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    printed = [answer.splitlines()[-1:] for answer, _ in answers]
    assert printed == [[f"{number} 2 {devices}"] for number, devices in enumerate(seen)], answers


def test_one_process_agrees_with_itself_at_once() -> None:
    parallel.initialize(num_processes=1, process_id=0, coordinator_address="")
    agree = parallel.agreement(parallel.make_mesh(), delay=2)
    assert [agree(wish) for wish in (False, True, False)] == [False, True, False]
    parallel.check_same({"anything": object()})
    parallel.wait_for_all("nobody else")


def test_a_kernel_without_ipv6_is_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port can't be tried there, and what JAX then does is JAX's."""

    def without_ipv6(family: int, *rest: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    asked = []
    monkeypatch.setattr(socket, "socket", without_ipv6)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **options: asked.append(given))
    parallel.initialize(num_processes=2, process_id=0, coordinator_address="127.0.0.1:4321")
    assert asked == [("127.0.0.1:4321", 2, 0)]
