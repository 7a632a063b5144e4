"""A training step of one torch module by whatever byol_jax comes first on PYTHONPATH; `builds.py` is at the other end.

    PYTHONPATH=CHECKOUT python -P benchmarks/harness/one_build.py '{"library": "timm", "name": "convnext_atto", ...}'

It imports nothing of this folder, and of byol_jax only the public calls, so that it runs with older versions. Answers
are lines of JSON: one when the step is compiled, then for each line on stdin, a number of steps, their seconds.
"""

import contextlib
import importlib
import json
import os
import sys
import time
import warnings
from typing import Any


def make_step(job: dict[str, Any]) -> Any:
    """The step of the module in a function without arguments, which waits for its result."""
    import jax
    import optax
    import torch

    import byol_jax
    import interop

    torch.manual_seed(0)
    create = getattr(importlib.import_module(job["library"]), "create_model", None)
    if create is None:
        create = importlib.import_module(f"{job['library']}.models").get_model
    module = create(job["name"], **job["options"])
    encoder = interop.from_torch_module(module, image_size=job["image_size"], verify=False)
    learner = byol_jax.make_learner(
        encoder,
        image_size=job["image_size"],
        hidden_layer=-1,
        augment_fn=lambda key, image: image,
        optimizer=optax.adam(3e-4),
    )
    images = jax.random.uniform(jax.random.key(1), (job["batch_size"], job["image_size"], job["image_size"], 3))
    state = learner.init(jax.random.key(0))
    compiled = jax.jit(learner.step, donate_argnums=0).lower(state, images).compile()
    now = {"state": state}

    def step() -> None:
        now["state"], _ = jax.block_until_ready(compiled(now["state"], images))

    return step


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints, in C too, goes to stderr
    job = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")  # an older version's, of libraries that have moved on
    with contextlib.redirect_stdout(sys.stderr):
        began = time.perf_counter()
        step = make_step(job)
        step()
        print(json.dumps({"ready_seconds": time.perf_counter() - began}), file=answers, flush=True)
        step()
        for line in sys.stdin:
            seconds = []
            for _ in range(int(line)):
                began = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - began)
            print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
