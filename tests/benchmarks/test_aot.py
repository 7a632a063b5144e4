"""What the benchmark that compiles for TPUs reads out of a compiled program, and how it ends without libtpu."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from benchmarks.aot import collectives, main, table
from byol_jax import parallel
from tests.source_code import ROOT

REPORT = {
    "title": "ResNet-50",
    "compile_seconds": 167.4,
    "flops": 4.13e12,
    "closed_form_flops": 4_200_000_000_000,
    "bytes_accessed": 79.64e9,
    "temporary_bytes": 4_800_000_000,
    "argument_bytes": 500_000_000,
    "collectives": {"all-reduce": {"count": 153, "bytes": 270_000_000}},
}


def test_the_bytes_of_all_that_is_sent_are_those_of_the_compiled_program() -> None:
    mesh = parallel.make_mesh(jax.devices()[:2])

    def send(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.psum(x, parallel.AXIS), jax.lax.all_gather(y, parallel.AXIS)

    spread, whole = PartitionSpec(parallel.AXIS), PartitionSpec()
    mapped = jax.jit(
        jax.shard_map(send, mesh=mesh, in_specs=(spread, spread), out_specs=(whole, whole), check_vma=False)
    )
    program = mapped.lower(jnp.zeros((4, 3)), jnp.zeros((6, 5), jnp.bfloat16)).compile().as_text()
    sent = collectives(program)
    assert sent["all-reduce"] == [2 * 3 * 4]
    gathered, widest = 6 * 5 * 2, 6 * 5 * 4  # XLA:CPU may send 16 bits as 32
    assert sent["all-gather"] in ([gathered], [widest])


def test_what_is_awaited_apart_counts_once_and_what_only_reads_doesnt() -> None:
    program = """
      %all-reduce-start.1 = f32[10]{0} all-reduce-start(f32[10]{0} %x), channel_id=1
      %all-reduce-done.1 = f32[10]{0} all-reduce-done(f32[10]{0} %all-reduce-start.1)
      %fusion.2 = f32[10]{0} fusion(f32[10]{0} %all-reduce-done.1), kind=kLoop
      ROOT %all-gather.3 = (pred[8]{0}, f32[]) all-gather(%y, %z), dimensions={0}
    """
    assert collectives(program) == {"all-reduce": [40], "all-gather": [12]}


def test_the_table_has_every_figure_with_its_unit() -> None:
    text = table(REPORT)
    for line in (
        "| operations a device | 4.13 TFLOP |",
        "| in closed form | 4.2 TFLOP |",
        "| bytes accessed | 79.6 GB |",
        "| temporaries | 4.80 GB |",
        "| all-reduce | 153, 270.0 MB |",
        "| time to compile | 167 s |",
    ):
        assert line in text


def test_a_folder_with_results_is_refused_before_anything_is_compiled(tmp_path, capsys) -> None:
    (tmp_path / "table.md").touch()
    assert main(["--out", str(tmp_path)]) == 2
    assert "something is there already; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--batch-size", "0"], "'0' is not a whole number above 0"),
        (["--depth", "51"], "'51' is not one of 18, 34, 50, 101; 50 is the nearest"),
        (["--shard-state", "--driver", "shard_map"], "--shard-state is for --driver jit: shard_map takes whole states"),
        (["--drivers", "jit"], "--drivers is not an option, --driver is the nearest"),
    ],
)
def test_a_wrong_word_is_one_line(words, line, capsys) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.aot", "--depth", "18", "--image-size", "32", "--batch-size", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "pip install libtpu" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
