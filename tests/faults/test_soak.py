"""A long run: memory, open files, logs and checkpoints stay as they were after the first thousand steps.

`byol-jax train` in a process of its own, looked at from outside by what Linux says about it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import RECIPE, plain_rows, states

from byol_jax.runs.metrics import read_metrics

MIB = 2**20


def folder_of_images(root, count=40):
    generator = np.random.default_rng(0)
    for number in range(count):
        path = root / f"{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (24, 24), np.uint8)).save(path)
    return root


def looked_at(process, out):
    """(last step in metrics.jsonl, resident MiB, open files, threads) of a living process; None while it has no row."""
    try:
        resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
        files = len(os.listdir(f"/proc/{process.pid}/fd"))
        threads = len(os.listdir(f"/proc/{process.pid}/task"))
        step = plain_rows(out)[-1]["step"]
    except (OSError, IndexError):  # not begun, or over
        return None
    return step, resident, files, threads


def soak(tmp_path, steps, every):
    """What was seen while a run of so many steps went on, every tenth of a second, and the run's folder."""
    out = tmp_path / "run"
    words = [sys.executable, "-m", "byol_jax", "train", folder_of_images(tmp_path / "images"), "--out", out, *RECIPE]
    words += ["--steps", steps, "--log-every", every, "--checkpoint-every", every]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    seen = []
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(
            [str(word) for word in words], env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        while process.poll() is None:
            seen.append(looked_at(process, out))
            time.sleep(0.1)
    assert process.returncode == 0, (tmp_path / "errors").read_text()[-2000:]
    return [one for one in seen if one is not None], out


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ten_thousand_steps(tmp_path, share, figure):
    steps = share(10_000)
    seen, out = soak(tmp_path, steps, every=steps // 100)
    settled = [one for one in seen if steps // 10 <= one[0] < steps // 2]
    later = [one for one in seen if one[0] >= steps // 2]
    assert len(settled) >= 3, "looked at too seldom to tell"
    assert len(later) >= 3, "looked at too seldom to tell"
    memory = [max(resident for _, resident, _, _ in part) for part in (settled, later[:-1])]
    files = [min(count for _, _, count, _ in part) for part in (settled, later)]  # a save has some of its own
    threads = [min(count for _, _, _, count in part) for part in (settled, later)]
    assert memory[1] - memory[0] < 16, memory
    assert files[1] <= files[0] + 2
    assert threads[1] <= threads[0] + 2
    assert len(states(out)) == 3
    rows, _ = read_metrics(out / "metrics.jsonl")
    assert len(rows) == 100
    pace = [np.median([row["seconds"] for row in part]) for part in (rows[10:50], rows[50:])]
    assert len((out / "train.log").read_text().splitlines()) == 102
    assert len(list(out.rglob("*"))) < 25
    figure(
        "a run of many steps, a row and a checkpoint every hundredth of it",
        cases=steps,
        result=f"resident memory {memory[1] - memory[0]:+.1f} MiB from the first half to the second (of"
        f" {memory[1]:.0f}), open files {files[0]} and {files[1]}, threads {threads[0]} and {threads[1]}, time for a"
        f" step {pace[1] / pace[0]:.2f} of what it was, 3 checkpoints, 102 lines of log",
    )
