"""The house itself: who imports whom, and how large its rooms are. Read from the sources alone, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tfprune"
MOST_MODULES, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 15, 400, 60

# From the ground up: a room imports from itself and from rooms above it in this list only. What lies beside the
# rooms of experiments are the commands. `tfprune/__init__.py` is the door: it imports by name what is asked for.
ROOMS = (
    "tfprune.errors",
    "tfprune.support",
    "tfprune.data",
    "tfprune.models",
    "tfprune.graph",
    "tfprune.cost",
    "tfprune.surgery",
    "tfprune.engines",
    "tfprune.plans",
    "tfprune.planning",
    "tfprune.training",
    "tfprune.paper",
    "tfprune.methods",
    "tfprune.sparse_training",
    "tfprune.experiments.setup",
    "tfprune.experiments.store",
    "tfprune.experiments.studies",
    "tfprune.experiments.findings",
    "tfprune.experiments.reporting",
    "tfprune.experiments.bench",
    "tfprune.experiments",
    "tfprune.prune",
    "tfprune.__main__",
)


def modules(root: Path, package: str = "tfprune") -> dict[str, Path]:
    """Dotted name -> file, of every module of a package."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The known modules that a module imports anywhere: at its top, in a function, or for the type checker only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                if f"{base}.{alias.name}" in known:  # a module of a package, and not a name in its __init__
                    yield f"{base}.{alias.name}"
                elif base in known:
                    yield base


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> the modules that it imports, the package's door left out."""
    known = modules(root)
    return {name: set(imports(name, path, known)) - {name, "tfprune"} for name, path in known.items()}


def room(name: str) -> str:
    """The innermost room that a module lies in."""
    return max((one for one in ROOMS if name == one or name.startswith(f"{one}.")), key=len)


def upwards(imported: dict[str, set[str]]) -> list[str]:
    """The imports of a room that comes later."""
    return [
        f"{name} imports {other}"
        for name, others in imported.items()
        if name != "tfprune"
        for other in sorted(others)
        if ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]


def circle(imported: dict[str, set[str]]) -> list[str]:
    """The modules of a circle of imports, the first one again at its end; empty if there is none."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions and methods of a file, with their lines, decorators included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min(part.lineno for part in (node, *node.decorator_list))
            yield node.name, node.end_lineno - first + 1


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


# The package.


def test_every_module_lies_in_a_room():
    assert [name for name in modules(ROOT) if name != "tfprune" and not name.startswith(ROOMS)] == []


def test_every_room_is_there():
    found = modules(ROOT)
    assert [one for one in ROOMS if one not in found] == []


def test_no_import_runs_upwards():
    assert upwards(graph(ROOT)) == []


def test_no_imports_run_in_a_circle():
    assert circle(graph(ROOT)) == []


def test_no_folder_holds_too_many_modules():
    counts = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            folder = str(path.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_no_module_is_too_long():
    assert {name: lines(path) for name, path in modules(ROOT).items() if lines(path) > MOST_LINES} == {}


def test_no_function_is_too_long():
    found = {
        f"{name}.{function}": length
        for name, path in modules(ROOT).items()
        for function, length in functions(path)
        if length > MOST_LINES_OF_A_FUNCTION
    }
    assert found == {}


# The tests.


def test_no_test_imports_from_another():
    known = modules(ROOT, "tests")
    found = [
        f"{name} imports {other}"
        for name, path in known.items()
        for other in imports(name, path, known)
        if other.rpartition(".")[2].startswith("test_")
    ]
    assert found == []


def test_every_folder_of_tests_is_that_of_a_room():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(str(folder) for folder in folders if not (PACKAGE / folder).is_dir()) == []


# What is read here finds what it looks for.


def house(tmp_path: Path, **sources: str) -> dict[str, set[str]]:
    """The imports of a package of these modules: their names with two underscores for a dot."""
    for name, source in sources.items():
        path = tmp_path / "tfprune" / Path(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        (path.parent / "__init__.py").touch()
    (tmp_path / "tfprune" / "__init__.py").touch()
    return graph(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "from tfprune.surgery.proof import verify",
        "from tfprune.surgery import proof",
        "import tfprune.surgery.proof",
        "from ..surgery.proof import verify",
        "def f():\n    from tfprune.surgery.proof import verify",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tfprune.surgery.proof import verify",
    ],
)
def test_an_import_upwards_is_seen_wherever_it_stands(tmp_path, source):
    found = house(tmp_path, graph__walk=source, surgery__proof="from tfprune.errors import PlanError", errors="")
    assert upwards(found) == ["tfprune.graph.walk imports tfprune.surgery.proof"]
    assert circle(found) == []


def test_a_circle_is_seen_without_what_leads_to_it_and_away_from_it(tmp_path):
    found = house(
        tmp_path,
        graph__a="def f():\n    from tfprune.graph import b",
        graph__b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tfprune.graph.c import x",
        graph__c="import tfprune.graph.a\nimport tfprune.errors",
        cost__reader="from tfprune.graph.a import f",
        errors="",
    )
    assert upwards(found) == []
    first, *others = circle(found)
    assert first == others[-1]
    assert set(others) == {"tfprune.graph.a", "tfprune.graph.b", "tfprune.graph.c"}


def test_the_lines_of_a_function_are_those_from_its_first_decorator_to_its_end(tmp_path):
    path = tmp_path / "one.py"
    path.write_text("class A:\n    @property\n    @cache\n    def f(self):\n        def g(): pass\n        return g\n")
    assert sorted(functions(path)) == [("f", 5), ("g", 1)]
