"""The project's own source as trees: which module imports what, and which functions and tests there are.

For the tests about the code itself; nothing of the project is imported here.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("byol_jax", "interop")


class Import(NamedTuple):
    """One import: the module, the line, and whether it happens when the file is loaded (not in a function)."""

    module: str
    line: int
    at_load: bool


@cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(), filename=str(path))


@cache
def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of both packages by its dotted name; `root` may be another checkout."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str, root: Path = ROOT) -> tuple[Import, ...]:
    """What a module imports; `from a import b` counts as a.b where that is a module of ours, else as a."""
    path = modules(root)[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node, at_load in _walk(parsed(path), at_load=True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in modules(root) else source for name in names]
        else:
            continue
        found += [Import(name, node.lineno, at_load) for name in dict.fromkeys(names)]
    return tuple(found)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _walk(node: ast.AST, *, at_load: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checked_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        yield child, at_load
        yield from _walk(child, at_load=at_load and not inside and not checked_only)
