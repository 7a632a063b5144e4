"""docs/operators.md from the operators' tables: python -m tests.pages.operators. A test holds it to the tables."""

import sys
from pathlib import Path
from types import ModuleType

from interop.trace.ops import table
from interop.trace.ops.table import OPERATORS
from tests.torch_layers import REFUSED, TRACED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"
HEAD = """# Operators of PyTorch that have a JAX counterpart

{count} names, one small function each in `interop/trace/ops/`, compared with torch in values and gradients by
`tests/interop/test_trace_ops.py`. A name stands for all its overloads, unless the overload has a line of its own. An
operator that isn't here, and that torch itself makes of others (its `CompositeImplicitAutograd`), is taken apart into
these. What a module uses beyond them is listed by `interop.missing_ops(module)` and added by
`interop.register_op(name)`: [recipes](recipes.md). Written by `python -m tests.pages.operators`.

| family | operators |
|---|---|
"""

LAYERS = """

## Layers of torch.nn that take one tensor

All that are found in `torch.nn`, made with plain arguments. {count} are exact, in outputs, buffers and gradients by
parameters and input, in both modes (`tests/interop/test_trace_layers.py`): {exact}.

The others are refused by name. A lazy layer is one of these once it has run, and refused before.

| layer | why |
|---|---|
"""


def families() -> dict[str, list[str]]:
    """{"pointwise": ["aten.add", …], …}, each name in the file that has the last word on it."""
    modules = {name: part for name, part in vars(table).items() if isinstance(part, ModuleType)}
    return {name: sorted(op for op in part.TABLE if OPERATORS[op] is part.TABLE[op]) for name, part in modules.items()}


def page() -> str:
    rows = [f"| {family} | {', '.join(f'`{name}`' for name in names)} |" for family, names in families().items()]
    refused = [f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())]
    layers = LAYERS.format(exact=", ".join(f"`{name}`" for name in sorted(TRACED)), count=len(TRACED))
    return HEAD.format(count=len(OPERATORS)) + "\n".join(rows) + layers + "\n".join(refused) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(OPERATORS)} operators", file=sys.stderr)
