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
FOUNDATION = {"errors", "facts", "node", "bodies", "arithmetic", "quantised", "fold", "foreign", "shapes", "model"}
GROUPS = FOUNDATION | {"rules", "groups"}
OBSERVED = {
    "products",
    "unfold",
    "obs",
    "hessian",
    "moments",
    "statistics",
    "memory",
    "pictures",
    "design",
    "sentences",
    "synthetic",
    "tokens",
}
WORK = (
    GROUPS
    | OBSERVED
    | {
        "analysis",
        "cut",
        "plan",
        "cost",
        "surgery",
        "rewrite",
        "runtime",
        "mask",
        "validate",
        "importance",
        "criteria",
        "select",
        "repair",
        "calibration",
        "walk",
        "summands",
        "pairs",
        "sequential",
        "trials",
        "sensitivity",
    }
)

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "facts": {"errors"},
    "node": set(),
    "bodies": {"node"},
    "arithmetic": {"node"},
    "quantised": {"arithmetic", "node"},
    "fold": {"arithmetic", "facts", "node"},
    "foreign": {"node", "quantised"},
    "shapes": {"bodies", "errors", "fold", "foreign", "node"},
    "model": {"bodies", "errors", "fold", "node", "quantised", "shapes"},
    "rules": FOUNDATION,
    "groups": FOUNDATION | {"rules"},
    "analysis": GROUPS,
    "cut": GROUPS,
    "plan": {"errors", "facts", "groups", "cut"},
    "cost": FOUNDATION | {"groups"},
    "blas": set(),
    "obs": {"blas"},
    "hessian": {"blas", "obs"},
    "moments": {"blas", "errors", "hessian", "obs"},
    "pairs": {"blas", "moments", "obs"},
    "products": FOUNDATION | {"blas"},
    "statistics": FOUNDATION | {"blas", "moments", "products", "runtime"},
    "memory": FOUNDATION | {"products", "moments", "statistics"},
    "tokens": FOUNDATION,
    "pictures": {"fold"},
    "design": FOUNDATION | {"blas", "runtime"},
    "sentences": FOUNDATION | {"cost", "runtime", "tokens"},
    "synthetic": FOUNDATION | {"design", "runtime", "tokens", "pictures", "sentences"},
    "repair": FOUNDATION | {"groups", "cut", "products", "moments", "obs", "statistics"},
    "criteria": FOUNDATION | {"blas", "groups", "products", "hessian", "moments", "obs", "statistics"},
    "calibration": FOUNDATION | OBSERVED | {"cost", "cut", "data", "repair", "runtime"},
    "walk": FOUNDATION | {"runtime"},
    "summands": FOUNDATION | {"blas", "products"},
    "sequential": FOUNDATION | {"blas", "products", "cut", "obs", "pairs", "repair", "runtime", "statistics", "summands", "mask", "walk"},
    "trials": GROUPS | {"calibration", "cost", "cut", "repair", "runtime", "mask"},
    "sensitivity": GROUPS | {"calibration", "trials"},
    "importance": FOUNDATION | {"groups", "criteria"},
    "choice": GROUPS | {"calibration", "cost", "criteria", "importance", "select", "sensitivity", "settings", "trials"},
    "refit": FOUNDATION | {"calibration", "products", "cut", "memory", "repair", "runtime", "sequential", "settings", "statistics"},
    "rounds": GROUPS | {"calibration", "choice", "cost", "cut", "plan", "refit", "rewrite", "settings"},
    "select": FOUNDATION | {"groups", "cost"},
    "surgery": {"bodies", "facts", "fold"},
    "rewrite": GROUPS | {"cut", "plan", "surgery"},
    "runtime": FOUNDATION,
    "mask": GROUPS | {"cut"},
    "double": {"bodies", "errors", "fold", "runtime"},
    "validate": GROUPS | {"cut", "double", "mask", "rewrite", "runtime"},
    "preprocess": {"errors", "fold"},
    "sources": {"errors", "files", "fold"},
    "data": FOUNDATION | {"preprocess", "runtime", "sources"},
    "files": {"bodies", "errors", "model", "plan"},
    "drift": {"fold", "runtime"},
    "comparison": WORK | {"data", "files", "drift", "preprocess"},
    "explain": GROUPS | {"analysis"},
    "settings": {"errors", "analysis", "cost", "criteria", "importance", "repair", "select"},
    "result": {"drift", "validate"},
    "pipeline": WORK | {"choice", "data", "files", "drift", "preprocess", "refit", "result", "rounds", "settings"},
    "report": WORK | {"drift", "explain", "comparison", "result"},
    "cli": WORK | {"data", "files", "drift", "explain", "comparison", "pipeline", "report", "result", "__init__"},
    "__init__": {"errors", "plan", "criteria", "pipeline", "result"},
    "__main__": {"cli"},
}
"""Part of the package (a module or a folder) -> the parts that it may import; its own folder goes without saying."""

ONLY: dict[str, set[str]] = {
    "onnx_graphsurgeon": {"surgery"},
    "onnxruntime": {"runtime"},
    "networkx": {"analysis", "groups", "explain", "rounds"},
    "click": {"cli"},
    "rich": {"report", "cli"},
    "jinja2": {"report"},
    "PIL": {"sources"},
    "scipy": {"blas", "criteria"},
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
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "spa_onnx" else {str(node.module)}
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


@pytest.mark.parametrize("statement", ["import spa_onnx", "import spa_onnx; spa_onnx.__version__", "import spa_onnx.errors"])
def test_importing_the_package_imports_neither_onnx_nor_numpy(statement):
    code = (
        f"import sys; {statement}; print([m for m in ('onnx', 'numpy', 'onnxruntime', 'networkx', 'scipy', 'click') if m in sys.modules])"
    )
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
