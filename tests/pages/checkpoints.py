"""docs/checkpoints.md: every source of weights, read and written, and how far the outputs are apart.

`python -m tests.pages.checkpoints` measures all rows (a few minutes) and writes the page; `--only WORD` prints the rows
with WORD in source or network, and writes nothing.
"""

import argparse
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

import interop
from tests.interop import deepmind_files
from tests.pages.checkpoint_cases import (
    CASES,
    IMAGES,
    MANY_IMAGES,
    Case,
    Learners,
    Networks,
    Outputs,
    Recorded,
    torch_batch,
)
from tests.parity.trajectory import QUICK, blank

__all__ = ["LIMIT", "PAGE", "measure", "page", "row"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
LIMIT = 1e-9
"""The largest difference that a row in float64 may have; in float32 1e-4."""

HEAD = """# Checkpoints of other libraries

What is read by `load_byol_checkpoint` (learners) and `from_torch_state_dict` (networks), and written by
`save_byol_checkpoint` and `to_torch_state_dict`. Each number is the largest difference between the other library's
outputs and ours in evaluation, relative to the largest output: features and projections of the online and the target
network for learners, the classifier's output for networks. *Read*: our network, with weights from their file.
*Written*: their network, which loads strictly a file that we wrote from other weights (all but solo-learn's
classifier). Weights are random, batch-norm statistics are those of one batch, images have 32 × 32 pixels, and both
sides compute in float64, so that a wrong weight can't pass for rounding. DeepMind's files have their own sizes and
float32 outputs.

byol-pytorch, torchvision and timm are the libraries themselves. lightly's and solo-learn's learners are modules written
for the tests with the names of those libraries, which have changed from release to release. lightly's network for CIFAR
is its own, and has to be traced: cut as in lightly's examples it loses the ReLU behind its stem. DeepMind's are two
small checkpoints in its format, with the outputs of its own code. A test with the libraries themselves holds that
training goes on with the same losses after reading and after writing: byol-pytorch 0.9.1, lightly 1.6.0 and solo-learn
1.0.2, its latest release on PyPI (`tests/interop/test_original_learners.py`, `tests/parity/`). All
rows are measured and written by `python -m tests.pages.checkpoints`.

| source | network | read | written |
|---|---|---:|---:|
"""


def settled(module: nn.Module, run: Any, seed: int) -> nn.Module:
    """In float64, every parameter a little off its start, batch-norm statistics those of a batch given to `run`."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().train()
    with torch.no_grad():
        for parameter in module.parameters():
            factor, offset = torch.rand((2, *parameter.shape), generator=generator).to(parameter.dtype)
            parameter.mul_(1 + 0.1 * factor).add_(0.01 * (offset - 0.5))
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.momentum = 1.0
        run(module, torch_batch(MANY_IMAGES))
    return module.eval()


def _arrays(outputs: dict[str, torch.Tensor]) -> Outputs:
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}


def _difference(ours: Outputs, theirs: Outputs) -> float:
    return max(float(np.max(np.abs(ours[name] - theirs[name])) / np.max(np.abs(theirs[name]))) for name in theirs)


def _our_outputs(learner: Any, state: Any, images: Any) -> Outputs:
    networks = {"": "online", "target ": "target"}
    found = {}
    for front, which in networks.items():
        found[front.strip() or "features"] = learner.embed(state, images, which=which)
        found[f"{front}projection"] = learner.project(state, images, which=which)
    return found


def _wide(shapes: Any) -> Any:
    """The same in float64."""
    return jax.tree.map(lambda leaf: leaf.update(dtype=np.float64) if leaf.dtype == np.float32 else leaf, shapes)


def _learners(kind: Learners) -> tuple[float, float | None]:
    module, other = (settled(kind.theirs(), kind.outputs, seed) for seed in (0, 1))
    learner = kind.ours()
    outputs = jax.jit(partial(_our_outputs, learner), compiler_options=QUICK)

    def loaded(one: nn.Module) -> Any:
        return interop.load_byol_checkpoint(kind.renamed(dict(one.state_dict())), like=blank(learner))

    with torch.no_grad():
        read = _difference(outputs(loaded(module), IMAGES), _arrays(kind.outputs(module, torch_batch(IMAGES))))
        if kind.layout is None:
            return read, None
        state = loaded(other)
        with tempfile.TemporaryDirectory() as folder:
            interop.save_byol_checkpoint(f"{folder}/learner.pt", state, layout=kind.layout)
            saved = torch.load(f"{folder}/learner.pt", weights_only=True)
        missing, unexpected = module.load_state_dict(saved, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith("classifier.") for name in missing), missing
        written = _difference(_arrays(kind.outputs(module, torch_batch(IMAGES))), outputs(state, IMAGES))
    return read, written


def _networks(kind: Networks) -> tuple[float, float]:
    run = nn.Module.__call__
    module, other = (settled(kind.theirs(), run, seed) for seed in (0, 1))
    encoder = kind.ours()
    like = _wide(jax.eval_shape(lambda: encoder.init(jax.random.key(0), IMAGES.shape[1:])))
    apply = jax.jit(
        lambda variables: encoder.apply(variables, IMAGES, train=False, hidden_layer=-1)[0], compiler_options=QUICK
    )
    batch = torch_batch(IMAGES)
    with torch.no_grad():
        ours = apply(interop.from_torch_state_dict(dict(module.state_dict()), like=like))
        read = _difference({"output": ours}, {"output": module(batch).numpy()})
        variables = interop.from_torch_state_dict(dict(other.state_dict()), like=like)
        state_dict = interop.to_torch_state_dict(variables, arch=kind.arch)
        module.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict.items()}, strict=True)
        written = _difference({"output": module(batch).numpy()}, {"output": apply(variables)})
    return read, written


def _recorded(kind: Recorded) -> tuple[float, None]:
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pretrain.pkl"
        path.write_bytes(deepmind_files.pickles()[f"{kind.name}/pretrain.pkl"])
        like = blank(deepmind_files.learner_of(kind.name))
        state = interop.load_byol_checkpoint(path, like=like)
    expected = deepmind_files.arrays(kind.name)
    for size in deepmind_files.SIZES:
        images = jax.numpy.asarray(deepmind_files.arrays("images")[f"images_{size}"])
        learner = deepmind_files.learner_of(kind.name, image_size=images.shape[1:3])
        ours = jax.jit(partial(_our_outputs, learner), compiler_options=QUICK)(state, images)
        names = {
            "features": "embedding",
            "projection": "projection",
            "target": "target_embedding",
            "target projection": "target_projection",
        }
        worst = max(worst, _difference(ours, {name: expected[f"{stored}_{size}"] for name, stored in names.items()}))
    return worst, None


def measure(case: Case) -> tuple[float, float | None]:
    """The two numbers of a row: read, and written (None where nothing is)."""
    torch.manual_seed(0)
    measures: dict[type, Any] = {Learners: _learners, Networks: _networks, Recorded: _recorded}
    with warnings.catch_warnings(), jax.enable_x64(True):
        warnings.simplefilter("ignore")  # the libraries' own
        return measures[type(case.kind)](case.kind)


def row(case: Case, numbers: tuple[float, float | None]) -> str:
    """A line of the page."""
    read, written = numbers
    return f"| {case.source} | {case.network} | {read:.0e} | {'-' if written is None else f'{written:.0e}'} |"


def page(rows: list[str]) -> str:
    """The whole page."""
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pages.checkpoints", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="only rows with this word; the page stays as it is")
    only = parser.parse_args().only
    rows = []
    for case in CASES:
        if only in case.source or only in case.network:
            rows.append(row(case, measure(case)))
            print(rows[-1], file=sys.stderr, flush=True)
    if not only:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
