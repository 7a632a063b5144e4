"""The shape of the code: who may import whom, how long files and functions are, and that every test can fail."""

import ast
import sys

import pytest

from tests.source_code import PACKAGES, ROOT, functions, imports, modules, parsed

FLOORS = [
    "types errors tree hidden",
    "loss ema optim schedules metrics ops augment",
    "nets",
    "settings views byol",
    "parallel disk manifest leaves checkpoint data evaluate",
    "presets allocator environment metrics_file run_config run curves page plots report artifacts events source "
    "progress train demo cli __main__",
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
PROGRAMS = len(FLOORS) - 1

NUMPY_ONLY = (
    *("names", "rules", "tables", "convert", "packed", "transformers", "files", "checkpoints.learners"),
    *("torch_optimizers", "commands", "contents", "recognition", "anatomy", "refusals"),
)
WAIST = {f"byol_jax.{name}" for name in ("types", "tree", "errors", "hidden")}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60


def ours(package):
    return [name for name in modules() if name.split(".")[0] == package]


def floor(module):
    """A module's floor: its top-level name decides; the package's own `__init__` re-exports everything."""
    parts = module.split(".")
    return PROGRAMS if len(parts) == 1 else FLOOR_OF.get(parts[1])


def below(names, module):
    return any(module == name or module.startswith(f"{name}.") for name in names)


def where(module, imported):
    return f"{modules()[module].relative_to(ROOT)}:{imported.line} imports {imported.module}"


def test_the_packages_are_found():
    assert {"byol_jax.types", "byol_jax.checkpoint"} <= set(modules())
    assert sum(len(imports(name)) for name in modules()) > 50


def test_every_module_has_a_floor():
    homeless = [name for name in ours("byol_jax") if floor(name) is None]
    assert not homeless, "; ".join(["name them in FLOORS above", *homeless])


def test_no_import_goes_up():
    faults = [
        f"{where(module, imported)}: floor {floor(module)} imports floor {floor(imported.module)}"
        for module in ours("byol_jax")
        for imported in imports(module)
        if imported.module in modules() and imported.module.startswith("byol_jax")
        if floor(module) < floor(imported.module)
    ]
    assert not faults, "\n".join(faults)


def test_no_cycles():
    """Over all imports, those inside functions too: a cycle is a cycle in the reader's head."""
    graph = {
        module: sorted({imported.module for imported in imports(module) if imported.module in modules()} - {module})
        for module in modules()
    }
    done, path, cycles = set(), [], []

    def visit(module):
        if module in path:
            cycles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            path.append(module)
            for imported in graph[module]:
                visit(imported)
            done.add(path.pop())

    for module in graph:
        visit(module)
    assert not cycles, "\n".join(cycles)


def test_byol_jax_meets_torch_and_interop_only_inside_programs():
    faults = [
        where(module, imported)
        for module in ours("byol_jax")
        for imported in imports(module)
        if below(("torch", "torchvision", "timm", "interop"), imported.module)
        if imported.at_load or floor(module) != PROGRAMS
    ]
    assert not faults, "\n".join(faults)


def test_interop_sees_only_the_words_of_byol_jax():
    faults = []
    for module in ours("interop"):
        allowed = WAIST | ({"byol_jax.ops"} if module.startswith("interop.trace") else set())
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


@pytest.mark.parametrize("name", NUMPY_ONLY)
def test_numpy_only_files_load_nothing_else(name):
    """When loaded, numpy, the standard library, safetensors and pure Python of ours; followed through our own files."""
    start = f"interop.{name}"
    assert start in modules()
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


def test_files_and_functions_are_short():
    faults = []
    for path in modules().values():
        lines = len(path.read_text().splitlines())
        if lines > MAX_FILE_LINES:
            faults.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for function in functions(parsed(path)):
            lines = (function.end_lineno or 0) - function.lineno + 1 - docstring_lines(function)
            if lines > MAX_FUNCTION_LINES:
                faults.append(f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {lines} lines")
    assert not faults, "; ".join([f"at most {MAX_FILE_LINES} lines a file, {MAX_FUNCTION_LINES} a function", *faults])


def docstring_lines(function):
    """How many of a function's lines are its docstring, which may be as long as its users need."""
    first = function.body[0]
    return 0 if ast.get_docstring(function) is None else (first.end_lineno or 0) - first.lineno + 1


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


def test_test_files_are_short_too():
    faults = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in suite()
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES
    ]
    assert not faults, "\n".join(faults)


def test_packages_are_typed():
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)
