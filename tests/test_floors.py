"""The shape of the code: which folder stands on which floor, who may import whom, and that every test can fail."""

import ast
import sys

import pytest

from tests.architecture import inner_room, room
from tests.source_code import PACKAGES, ROOT, functions, imports, modules, parsed

FLOORS = {
    "byol_jax": [
        "types tree hidden image_size memory errors disk file_names",
        "loss ema optim optimizer_checks schedules metrics ops augment",
        "nets",
        "settings views byol accumulation batchnorm_groups online_probe",
        "recipe presets parallel checkpoint data evaluate",
        "runs",
        "report",
        "train",
        "cli __main__",
    ],
    "interop": [
        "errors arrays",
        "formats",
        "files",
        "weights",
        "learners",
        "optimizers inspect trace",
        "weight_file",
        "__main__",
    ],
}
"""Rooms, from the lowest floor up: a folder, or a file that lies beside the folders."""
FLOOR_OF = {
    f"{package}.{room}": number
    for package, floors in FLOORS.items()
    for number, rooms in enumerate(floors)
    for room in rooms.split()
}
WORLD = FLOOR_OF["byol_jax.checkpoint"]
"""The floor of devices, disks and images; programs stand above it."""

NUMPY_ONLY = ("interop.formats", "interop.files", "interop.weights", "interop.learners", "interop.inspect")
NUMPY_ONLY += ("interop.weight_file",)
WORDS = {f"byol_jax.{name}" for name in FLOORS["byol_jax"][0].split()}
MOST_FLAT_FILES = {"byol_jax": 24, "interop": 8, "benchmarks": 16, "tests": 12}


def ours(package):
    return [name for name in modules() if name.split(".")[0] == package]


def floor(module):
    """A room's floor; a package's own `__init__` re-exports everything and stands on the highest."""
    return FLOOR_OF.get(room(module)) if "." in module else len(FLOORS[module]) - 1


def below(names, module):
    return any(module == name or module.startswith(f"{name}.") for name in names)


def where(module, imported):
    return f"{modules()[module].relative_to(ROOT)}:{imported.line} imports {imported.module}"


def test_the_packages_are_found():
    assert {"byol_jax.types", "byol_jax.checkpoint"} <= set(modules())
    assert sum(len(imports(name)) for name in modules()) > 50


def test_every_module_has_a_floor():
    homeless = sorted({room(name) for name in modules() if floor(name) is None})
    assert not homeless, "; ".join(["name them in FLOORS above", *homeless])


def test_every_room_of_a_floor_is_there():
    absent = sorted(set(FLOOR_OF) - {room(name) for name in modules()})
    assert not absent, "; ".join(["FLOORS above names them", *absent])


@pytest.mark.parametrize("folder", MOST_FLAT_FILES)
def test_few_files_lie_beside_the_folders(folder):
    flat = [path.name for path in (ROOT / folder).glob("*.py")]
    assert len(flat) <= MOST_FLAT_FILES[folder], "; ".join(sorted(flat))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_goes_up(package):
    faults = [
        f"{where(module, imported)}: floor {floor(module)} imports floor {floor(imported.module)}"
        for module in ours(package)
        for imported in imports(module)
        if imported.module in modules() and below([package], imported.module)
        if floor(module) < floor(imported.module)
    ]
    assert not faults, "\n".join(faults)


def cycles(graph):
    """Every cycle met by a walk through `graph`, {name: names that it imports}."""
    done, path, found = set(), [], []

    def visit(name):
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            path.append(name)
            for imported in graph[name]:
                visit(imported)
            done.add(path.pop())

    for name in graph:
        visit(name)
    return found


@pytest.mark.parametrize("node", [lambda module: module, inner_room, room], ids=["files", "inner rooms", "rooms"])
def test_no_cycles(node):
    """Over all imports, those inside functions too: a cycle is a cycle in the reader's head."""
    graph = {node(module): set() for module in modules()}
    for module in modules():
        graph[node(module)] |= {node(imported.module) for imported in imports(module) if imported.module in modules()}
    found = cycles({name: sorted(imported - {name}) for name, imported in graph.items()})
    assert not found, "\n".join(found)
    assert cycles({"a": ["b"], "b": ["a"]}) == ["a -> b -> a"]


def test_byol_jax_meets_torch_and_interop_only_inside_programs():
    faults = [
        where(module, imported)
        for module in ours("byol_jax")
        for imported in imports(module)
        if below(("torch", "torchvision", "timm", "interop"), imported.module)
        if imported.at_load or floor(module) <= WORLD
    ]
    assert not faults, "\n".join(faults)


def names_of_interop(tree):
    """What a file takes of interop: modules that it imports, "interop.weights", and names, "open_weights"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("interop."))
        elif isinstance(node, ast.ImportFrom) and below(["interop"], node.module or "") and not node.level:
            yield from (alias.name if node.module == "interop" else node.module for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "interop":
            yield node.attr


def test_byol_jax_sees_only_the_public_names_of_interop():
    stub = parsed(ROOT / "interop" / "__init__.pyi")
    public = {alias.asname for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for alias in node.names}
    used = {module: set(names_of_interop(parsed(modules()[module]))) for module in ours("byol_jax")}
    faults = [f"{module}: {', '.join(sorted(names - public))}" for module, names in used.items() if names - public]
    assert not faults, "\n".join(faults)
    assert "open_weights" in set().union(*used.values())
    inner = "import interop.files\nfrom interop.weights import names\nfrom interop import files\ninterop.trace.saved"
    assert set(names_of_interop(ast.parse(inner))) == {"interop.files", "interop.weights", "files", "trace"}


def test_interop_sees_only_the_words_of_byol_jax():
    faults = []
    for module in ours("interop"):
        allowed = WORDS | ({"byol_jax.ops"} if module.startswith("interop.trace") else set())
        faults += [
            where(module, imported)
            for imported in imports(module)
            if imported.module.startswith("byol_jax") and not below(allowed, imported.module)
        ]
    assert not faults, "\n".join(faults)


def test_interop_loads_torch_only_inside_functions():
    heavy = ("torch", "torchvision", "timm")
    faults = [
        where(module, imported)
        for module in ours("interop")
        for imported in imports(module)
        if imported.at_load and below(heavy, imported.module)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("start", [name for name in modules() if below(NUMPY_ONLY, name)])
def test_numpy_only_files_load_nothing_else(start):
    """When loaded, numpy, the standard library, safetensors and pure Python of ours; followed through our own files."""
    faults, todo, seen = [], [start], set()
    while todo:
        module = todo.pop()
        seen.add(module)
        for imported in (one for one in imports(module) if one.at_load):
            top = imported.module.split(".")[0]
            if imported.module in modules():
                todo += [imported.module] if imported.module not in seen else []
            elif top not in {"numpy", "safetensors", "lazy_loader", "ml_dtypes"} | sys.stdlib_module_names:
                faults.append(where(module, imported))
    assert not faults, "\n".join(faults)


def test_no_code_from_text():
    faults = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules().values()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "exec", "compile"}
    ]
    assert not faults, "\n".join(faults)


def test_every_file_says_what_it_is_and_what_it_gives():
    faults = []
    for path in modules().values():
        tree = parsed(path)
        if not ast.get_docstring(tree):
            faults.append(f"{path.relative_to(ROOT)}: no docstring")
        if len(tree.body) == 1:  # a package's docstring and nothing else
            continue
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        if "__all__" not in names and path.name != "__main__.py":
            faults.append(f"{path.relative_to(ROOT)}: no __all__")
    assert not faults, "\n".join(faults)


def can_fail(function, helpers=()):
    """Whether a test asserts, raises, expects an error, or calls something that does.

    That is `pytest.raises` and the like, a name with assert_ or check_ in front, or one of `helpers`: functions of the
    same file that can fail themselves.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2].lstrip("_")
            if last.startswith(("assert_", "check_")) or name in {
                "pytest.raises",
                "pytest.warns",
                "pytest.fail",
                *helpers,
            }:
                return True
    return False


def suite():
    return sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "__pycache__" not in path.parts)


def test_every_test_can_fail():
    idle = []
    for path in suite():
        defined = list(functions(parsed(path)))
        helpers = {function.name for function in defined if can_fail(function)}
        tests = [function for function in defined if function.name.startswith("test_")]
        idle += [f"{path.relative_to(ROOT)}:{test.lineno} {test.name}" for test in tests if not can_fail(test, helpers)]
    assert not idle, "\n".join(idle)
    assert not can_fail(ast.parse("def test_nothing():\n    compute(3)"))


def test_every_skip_says_why():
    faults = []
    for path in suite():
        for node in ast.walk(parsed(path)):
            marks = {"pytest.skip", "pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail", "pytest.xfail"}
            if isinstance(node, ast.Call) and ast.unparse(node.func) in marks:
                words = [*(ast.unparse(value) for value in node.args), *(k.arg for k in node.keywords)]
                needs = "reason" in words or (ast.unparse(node.func) in {"pytest.skip", "pytest.xfail"} and node.args)
                faults += [] if needs else [f"{path.relative_to(ROOT)}:{node.lineno}"]
    assert not faults, "\n".join(faults)


def test_packages_are_typed():
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)
