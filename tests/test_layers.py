"""Imports point one way, heavy libraries stay in one place, and `import spa_onnx` is fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import spa_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(spa_onnx.__file__).parent
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "linalg": set(),
    "config": {"errors"},
    "model": {"errors"},
    "execution": {"errors", "model"},
    "layers": {"linalg", "model"},
    "data": {"errors", "execution", "model"},
    "operators": {"errors", "layers", "linalg", "model"},
    "analysis": {"errors", "model", "operators"},
    "synthetic": {"errors", "execution", "layers", "linalg", "model", "operators"},
    "plan": {"analysis", "errors", "model", "operators"},
    "statistics": {"data", "errors", "execution", "layers", "linalg", "model", "operators", "synthetic"},
    "repair": {"config", "execution", "layers", "linalg", "model", "plan", "statistics"},
    "scoring": {"analysis", "errors", "layers", "linalg", "model", "statistics"},
    "validation": {"data", "errors", "execution", "model", "operators", "plan", "statistics", "synthetic"},
    "selection": {
        "analysis",
        "config",
        "errors",
        "execution",
        "model",
        "operators",
        "plan",
        "repair",
        "scoring",
        "statistics",
    },
    "report": {"analysis", "errors", "execution", "model", "selection", "validation"},
    "sizes": {"analysis", "errors", "execution", "model", "synthetic"},
    "rounds": {"analysis", "config", "model", "plan", "repair", "selection", "statistics"},
    "steps": {
        "analysis",
        "config",
        "data",
        "errors",
        "execution",
        "model",
        "operators",
        "scoring",
        "selection",
        "sizes",
        "statistics",
        "synthetic",
        "validation",
    },
    "job": {
        "analysis",
        "config",
        "execution",
        "model",
        "operators",
        "plan",
        "repair",
        "report",
        "rounds",
        "selection",
        "statistics",
        "steps",
        "validation",
    },
    "pipeline": {
        "analysis",
        "config",
        "errors",
        "execution",
        "job",
        "model",
        "plan",
        "repair",
        "report",
        "rounds",
        "scoring",
        "selection",
        "statistics",
        "steps",
    },
    "cli": {"analysis", "errors", "execution", "model", "pipeline", "plan", "report", "scoring", "validation"},
    "__init__": {"errors", "pipeline", "plan", "report", "scoring"},
    "__main__": {"cli"},
}
"""Part of the package (a module or a folder) -> the parts that it may import; its own folder goes without saying."""

ONLY: dict[str, set[str]] = {
    "onnx_graphsurgeon": {"plan"},
    "onnxruntime": {"execution"},
    "networkx": {"analysis"},
    "click": {"cli"},
    "rich": {"report"},
    "jinja2": {"report"},
    "PIL": {"data"},
    "scipy": {"linalg", "scoring"},
}
"""Library -> the only parts that import it."""


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree but those under `if TYPE_CHECKING`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from running(node)


def imported(path: Path, walk: Callable[[ast.AST], Iterator[ast.AST]] = ast.walk) -> set[str]:
    """Full names of all modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "spa_onnx"
                else {str(node.module)}
            )
    return names


def inner(path: Path) -> set[str]:
    """The parts of the package that a file imports, other than its own."""
    found = set()
    for name in imported(path):
        if name.split(".")[0] == "spa_onnx":
            where = [*name.split(".")[1:], "__init__"][0]
            found.add(where if (ROOT / f"{where}.py").exists() or (ROOT / where).is_dir() else "__init__")
    return found - {part(path)}


FILES = sorted(path for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_layer_may(path):
    assert part(path) in ALLOWED, f"give {part(path)} a place in the table"
    assert inner(path) <= ALLOWED[part(path)]


def test_the_package_has_at_most_13_floors_and_imports_go_down():
    """A part is one floor above the highest part that it imports."""
    uses = {name: set().union(*(inner(path) for path in FILES if part(path) == name)) for name in ALLOWED}
    floors: dict[str, int] = {}
    while len(floors) < len(uses):
        ready = {name for name, used in uses.items() if name not in floors and used <= floors.keys()}
        assert ready, f"a circle among {set(uses) - set(floors)}"
        floors |= {name: 1 + max((floors[used] for used in uses[name]), default=0) for name in ready}
    assert max(floors.values()) <= 13


@pytest.mark.parametrize("library", ONLY)
def test_a_heavy_library_is_imported_in_its_place_alone(library):
    users = {part(path) for path in FILES if any(name.split(".")[0] == library for name in imported(path, running))}
    assert users <= ONLY[library]


def test_the_table_has_no_circles():
    left = dict(ALLOWED)
    while left:
        free = {name for name, needs in left.items() if not needs & set(left)}
        assert free, f"these import each other: {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_the_table_names_parts_that_exist():
    assert {part(path) for path in FILES} >= set(ALLOWED) - {"__main__"}


@pytest.mark.parametrize(
    "statement", ["import spa_onnx", "import spa_onnx; spa_onnx.__version__", "import spa_onnx.errors"]
)
def test_importing_the_package_imports_neither_onnx_nor_numpy(statement):
    heavy = ("onnx", "numpy", "onnxruntime", "networkx", "scipy", "click")
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_validation_alone_needs_onnxruntime():
    code = "import sys, spa_onnx.pipeline; print('onnxruntime' in sys.modules, 'onnx_graphsurgeon' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_every_public_name_can_be_imported():
    for name in spa_onnx.__all__:
        assert getattr(spa_onnx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = spa_onnx.prunes
