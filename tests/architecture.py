"""The architecture in numbers: python -m tests.architecture [CHECKOUT]; by default of the checkout that it lies in.

A room is a folder of a package, or a file that lies beside the folders. An arrow goes from one room to another where a
file of the one imports a file of the other; what a package's own `__init__` re-exports doesn't count.
"""

import ast
import re
import sys
from itertools import combinations
from pathlib import Path

from tests.source_code import PACKAGES, ROOT, imports, modules, parsed


def room(module: str) -> str:
    """The folder that a module lies in, or the module itself where it lies beside the folders."""
    return ".".join(module.split(".")[:2])


def inner_room(module: str) -> str:
    """The folder of a room that a module lies in, `byol_jax.data.readers` for one, or a module beside such folders."""
    return ".".join(module.split(".")[:3])


def arrows(root: Path = ROOT, node=room) -> dict[str, set[str]]:
    """{room: the rooms that it imports}; with another `node`, the same for files or packages."""
    graph = {node(module): set() for module in modules(root) if module not in PACKAGES}
    for module in modules(root):
        inner = {one.module for one in imports(module, root) if one.module in modules(root)} - set(PACKAGES)
        if module not in PACKAGES:
            graph[node(module)] |= {node(one) for one in inner} - {node(module)}
    return graph


def mutual_pairs(graph: dict[str, set[str]]) -> list[str]:
    """Pairs of nodes that reach each other: a graph without cycles has none."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    behind = {name: reached(name) for name in graph}
    return [f"{a} and {b}" for a, b in combinations(sorted(graph), 2) if b in behind[a] and a in behind[b]]


def interop_imports(root: Path = ROOT) -> tuple[int, int]:
    """How often byol_jax imports interop, and how many of these imports name what interop keeps to itself."""
    found = [one.module for name in modules(root) if name.startswith("byol_jax") for one in imports(name, root)]
    found = [module for module in found if module.split(".")[0] == "interop"]
    return len(found), sum(module != "interop" for module in found)


def upward_arrows(root: Path = ROOT) -> int:
    """Imports that run upward by the floors that the checkout's own tests/test_floors.py names, within a package."""
    statements = parsed(root / "tests" / "test_floors.py").body
    assigned = {ast.unparse(one.targets[0]): one.value for one in statements if isinstance(one, ast.Assign)}
    floors = ast.literal_eval(assigned["FLOORS"])
    floors = floors if isinstance(floors, dict) else {"byol_jax": floors}
    floor = {
        f"{package}.{name}": number
        for package, rows in floors.items()
        for number, row in enumerate(rows)
        for name in row.split()
    }
    pairs = [(name, one) for name, others in arrows(root).items() for one in others]
    pairs = [(a, b) for a, b in pairs if a in floor and b in floor and a.split(".")[0] == b.split(".")[0]]
    return sum(floor[a] < floor[b] for a, b in pairs)


def flat_files(package: str, root: Path = ROOT) -> int:
    """Python files that lie beside the package's folders."""
    return len(list((root / package).glob("*.py")))


def main(root: Path) -> None:
    graph, names = arrows(root), (root / "docs" / "api.md").read_text()
    every, inner = interop_imports(root)
    rows = {
        "Python files": len(modules(root)),
        "lines in them": sum(len(path.read_text().splitlines()) for path in modules(root).values()),
        "files beside byol_jax's folders": flat_files("byol_jax", root),
        "files beside interop's folders": flat_files("interop", root),
        "rooms": len(graph),
        "arrows between rooms": sum(map(len, graph.values())),
        "arrows that go up": upward_arrows(root),
        "pairs of files that reach each other": len(mutual_pairs(arrows(root, node=lambda module: module))),
        "pairs of rooms that reach each other": len(mutual_pairs(graph)),
        "imports of interop in byol_jax": every,
        "of these, imports of its internals": inner,
        "public names in docs/api.md": len(re.findall(r"^- `\w+`: ", names, re.MULTILINE)),
    }
    for what, number in rows.items():
        print(f"{what:<40}{number:>7,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT)
