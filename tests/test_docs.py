"""The documentation: up to date, complete, and all its code runs."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from runtimes import needs_runtime

from spa_onnx.cli import COMMANDS, main
from spa_onnx.model.traits import TRAITS
from spa_onnx.operators import OPERATORS
from spa_onnx.pipeline import inspect
from spa_onnx.scoring import CRITERIA

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"```.*?```", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """docs/generate.py as a module."""
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("generate")
    sys.path.remove(str(DOCS))


@pytest.fixture
def _restored_tables() -> Iterator[None]:
    """Whatever a page adds to the tables is gone afterwards."""
    tables = [(table, dict(table)) for table in (OPERATORS, TRAITS, CRITERIA)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    return CODE.findall(text(DOCS / page))


def run(code: str, names: dict[str, Any]) -> None:
    exec(code, names)  # noqa: S102 - the page is ours


def run_tests(names: dict[str, Any]) -> int:
    """Run the test functions that a page defines, with their parameters; how many runs that were."""
    runs = 0
    for name, function in list(names.items()):
        if name.startswith("test_"):
            cases: list[dict[str, Any]] = [{}]
            for mark in getattr(function, "pytestmark", ()):
                key, values = mark.args
                cases = [case | {key: value} for case in cases for value in values]
            for case in cases:
                function(**case)
            runs += len(cases)
    return runs


@pytest.mark.parametrize("columns", [None, "60"])
def test_every_generated_page_and_picture_is_up_to_date(generate, monkeypatch, columns):
    """In a terminal of any width, too. After a change: `make docs`."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert [str(path.relative_to(ROOT)) for path, _ in generate.stale()] == []


def test_a_stale_block_is_noticed_and_a_slow_run_is_not(generate):
    page = "<!-- begin: drop -->\nyesterday's\n<!-- end -->\n"
    assert generate.settled(generate.fresh_page(page)) != generate.settled(page)
    slow = "latency  9 ms\n   slower than before\ngroups\nlargest difference 2e-07 on"
    fast = "latency   1 ms\ngroups\nlargest difference 1e-07 on"
    assert generate.settled(slow) == generate.settled(fast)
    assert generate.settled("MACs 1.00 M") != generate.settled("MACs 2.00 M")


def test_a_command_that_fails_does_not_go_into_a_page(generate):
    with pytest.raises(RuntimeError, match="ends with 2"):
        generate.fresh_page("<!-- begin: $ spa-onnx groups no_such_model.onnx -->\n<!-- end -->\n")


def test_readme_shows_the_commands_and_is_of_a_length_that_people_read():
    readme = text(ROOT / "README.md")
    for command in ("prune models/digits_resnet.onnx --ratio 0.4 -o pruned.onnx", "groups models/digits_resnet.onnx"):
        assert f"<!-- begin: $ spa-onnx {command} -->" in readme
    assert 60 <= len(readme.splitlines()) <= 120


def test_all_commands_of_the_readme_are_run_or_are_for_the_makefile():
    shell = re.findall(r"```sh\n(.*?)```", text(ROOT / "README.md"), re.DOTALL)
    targets = re.findall(r"^(\w+):", text(ROOT / "Makefile"), re.MULTILINE)
    for line in "".join(shell).splitlines():
        assert line == "pip install spa-onnx" or line.removeprefix("make ") in targets


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help_and_is_in_the_docs(name):
    command = main.get_command(None, name)
    assert command is not None
    assert command.help
    assert f"## spa-onnx {name}\n" in text(DOCS / "cli.md")
    assert all(option.help for option in command.params if option.param_type_name == "option")
    assert any(f"{name}" in text(page) for page in PAGES if page.name not in ("cli.md", "CHANGELOG.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    links = [
        link for link in LINK.findall(FENCED.sub("", text(page))) if not link.startswith(("http://", "https://", "#"))
    ]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert missing == []


def test_every_page_and_picture_is_reachable_from_the_readme():
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.exists():
            seen.add(page)
            if page.suffix == ".md":
                waiting += [
                    (page.parent / link.partition("#")[0]).resolve()
                    for link in LINK.findall(text(page))
                    if "://" not in link
                ]
    written = [*PAGES, *(DOCS / "pictures").glob("*.svg")]
    assert [path.name for path in written if path not in seen] == []


def test_what_the_readme_names_as_criteria_can_be_chosen():
    (line,) = re.findall(r"^- \*Criteria\*[^.]*\.", text(ROOT / "README.md"), re.MULTILINE)
    named = re.findall(r"`([^`]+)`", line)
    assert "l1" in named
    assert [name for name in named if name not in CRITERIA] == []


@pytest.mark.usefixtures("_restored_tables")
def test_the_operator_of_the_page_is_registered_by_what_the_page_says_alone():
    net, rule, registration, *tests = blocks("new_rule.md")
    family = text(ROOT / "spa_onnx" / "operators" / "conv.py")
    for code in (rule, registration):
        for part in code.split("\n\n\n")[1:]:
            assert part.strip() in family, "the page shows another code than the package has"
    needs_runtime("deform_conv")
    names: dict[str, Any] = {}
    run(net, names)
    del OPERATORS["DeformConv"], TRAITS["DeformConv"]
    pinned = {group.pinned for group in inspect(names["NETS"]["deform_conv"]()).groups}
    assert any("no coupling rule for operator DeformConv" in why for why in pinned)
    run(rule + registration + "".join(tests), names)
    assert run_tests(names) > len(names["NETS"])


@pytest.mark.usefixtures("_restored_tables")
def test_the_criterion_of_the_page_does_what_its_test_says():
    names: dict[str, Any] = {}
    run("".join(blocks("new_criterion.md")), names)
    assert "median" in CRITERIA
    assert run_tests(names) == 1
