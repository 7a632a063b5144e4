"""docs/torch_modules.md from the rows' JSON files. Pure functions; nothing here measures or judges."""

from collections.abc import Sequence
from typing import Any

__all__ = ["OUTCOMES", "page"]

SECONDS = ("trace_seconds", "compile_seconds", "verify_seconds")
OUTCOMES = ("exact", "differs", "refused", "failed")

HEAD = """# Networks that were traced and compared

    python -m benchmarks.torch_modules

measures the rows that are missing or were made by other code, one by one, and writes this page from
`benchmarks/results/torch_modules/`; `--only NAME` measures one row again, `--float32` verifies in float32 too.

{counts}

Each network has random weights and seeded noise on every parameter, so that none is zero. It is traced by
`from_torch_module`, compiled by `jax.jit`, and compared with torch's own run on a batch of {batch} random images, in
float64 and in training mode; dropout and stochastic depth drop nothing on either side. Each number is the largest error
over all tensors. A tensor's error is relative to its largest value, or to {share:.0e} of the largest value of its kind
where that is more (some gradients are truly zero):

- **output**: in training mode;
- **gradients**: of a random sum of the output, by every parameter;
- **buffers**: all of them after the step, integers exactly;
- **evaluation**: the output in evaluation mode afterwards, with the buffers that training left.

*exact*: no error above {limit:.0e}, `from_torch_module`'s own limit, and where there are seconds under *verify* its own
verification passed too: outputs, buffers and gradients in both modes, in float64 and, where it says *both*, in float32
as well, optimised, for batches of 2 and 8. *refused*: by an error that names the reason. Seconds are those to trace
both modes, to compile and to verify, on {cores} cores that had other work too, so they only show the order of
magnitude. Gradients at 3e-8 come from hard sigmoids and hard swishes: torch multiplies theirs by 1/6 rounded to
float32.

{versions}
"""

TITLES = (
    "network",
    "pixels",
    "parameters",
    "outcome",
    "output",
    "gradients",
    "buffers",
    "evaluation",
    "trace",
    "compile",
    "verify",
)


def page(rows: Sequence[dict[str, Any]], *, code: str, batch: int, limit: float, share: float) -> str:
    """The whole page.

    Args:
        rows: as `benchmarks.torch_modules` stores them.
        code: the hash of the code as it is now; rows that were measured on earlier code are marked.
        batch, limit, share: what the measurement used.
    """
    rows = sorted(rows, key=lambda row: row["name"])
    versions = "; ".join(sorted({_versions(row) for row in rows}))
    head = HEAD.format(
        counts=_counts(rows, code),
        batch=batch,
        limit=limit,
        share=share,
        cores=" or ".join(sorted({str(row["cores"]) for row in rows})),
        versions=f"Versions: {versions}.",
    )
    parts = [head]
    for library in sorted({row["name"].partition(":")[0] for row in rows}, reverse=True):
        own = [row for row in rows if row["name"].startswith(f"{library}:")]
        parts.append(f"## {library}: {len(own)}\n\n{_table(own, code)}\n")
    reasons = [f"- `{row['name']}`, {row['outcome']}: {row['reason']}" for row in rows if row["outcome"] != "exact"]
    if reasons:
        parts.append("## Why not exact\n\n" + "\n".join(reasons) + "\n")
    return "\n".join(parts)


def _counts(rows: Sequence[dict[str, Any]], code: str) -> str:
    numbers = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES}
    text = ", ".join(f"{number} {outcome}" for outcome, number in numbers.items())
    text = f"**{len(rows)} networks: {text}.**"
    older = sum(row["code"] != code for row in rows)
    those = "all of them" if older == len(rows) else f"{older} of them"
    marked = f"; {those}, marked *, were measured on earlier code" if older else ""
    return f"{text} Code when this page was written: `{code}`{marked}."


def _versions(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(row["versions"].items()))


def _table(rows: Sequence[dict[str, Any]], code: str) -> str:
    lines = [f"| {' | '.join(TITLES)} |", f"|---|---:|---:|---|{'---:|' * 7}"]
    for row in rows:
        cells = [row["name"].partition(":")[2] + ("" if row["code"] == code else " *")]
        cells += [str(row["size"]), f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else "", row["outcome"]]
        cells += [
            f"{row[kind]:.0e}" if kind in row else "" for kind in ("forward", "gradients", "buffers", "evaluation")
        ]
        cells += [f"{row[kind]:.0f} s" if kind in row else "" for kind in SECONDS]
        cells[-1] += " both" if "float32" in row.get("verified", ()) else ""
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
