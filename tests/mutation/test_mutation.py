"""What the mutation run changes and what it leaves alone, and how it knows a mutant again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("cosmic_ray", reason="make mutants needs the dev extra")

from places import listed, places, sample

LEFT_ALONE = '''
"""1 + 1."""
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    x = 1 > 0

Name: TypeAlias = "int | str"

@dataclass(frozen=True)
class Thing:
    size: "int | None"

def act(x: "int | None", *, y: "3 > 2") -> "1 + 1":
    """2 > 1."""
    raise ValueError(f"{x + 1}", 1 + 1, x > y)

def pair(a, b):
    return zip(a, b, strict=True)
'''

STATEMENTS = """SIZE = 1


def act(x, y=2):
    if (
        x
        and y
    ):
        return [
            v
            for v in x + y
        ]
"""


def drawn(tmp_path, code, count=100, seed=1):
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    return sample(tmp_path, ["code.py"], count, seed)


def test_wording_types_and_assertions_are_left_alone(tmp_path):
    assert len(places(LEFT_ALONE)) <= 1  # the bare * of a signature is a place, but nothing else can stand there
    assert drawn(tmp_path, LEFT_ALONE) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = a + b", {"x = a - b"}),
        ("x = a // b", {"x = a * b"}),
        ("x = a in b", {"x = a not in b"}),
        ("x = a not in b", {"x = a in b"}),
        ("x = [v for v in a if v]", {"x = [v for v in a if not (v)]"}),
        ("x = a is None", {"x = a is not None"}),
        ("x = a and b", {"x = a or b"}),
        ("x = -a", {"x = a"}),
        ("x = 4", {"x = 5", "x = 3"}),
        ("x = a < b", {f"x = a {other} b" for other in ("==", "!=", "<=", ">", ">=")}),
    ],
)
def test_a_line_is_changed_in_ways_that_are_hard_to_notice(tmp_path, line, expected):
    made = {mutant.after for seed in range(60) for mutant in drawn(tmp_path, line + "\n", seed=seed)}
    assert made == expected


def test_a_place_gives_one_mutant_and_no_two_are_alike(tmp_path):
    mutants = drawn(tmp_path, "x = 1 < 2\ny = a + b\ny = a + b\n")
    assert len(mutants) == len({(mutant.start, mutant.after) for mutant in mutants}) == 5


def test_the_same_mutants_are_drawn_again_wherever_the_lines_stand(tmp_path):
    code = "\n".join(f"x{number} = {number} + y" for number in range(2, 40))
    before, after = drawn(tmp_path, code, count=20), drawn(tmp_path, "import os\n\n\n" + code, count=20)
    assert [mutant.key for mutant in before] == [mutant.key for mutant in after]
    assert [mutant.start[0] + 3 for mutant in before] == [mutant.start[0] for mutant in after]
    assert {mutant.key for mutant in before} != {mutant.key for mutant in drawn(tmp_path, code, count=20, seed=2)}


def test_files_have_mutants_by_the_number_of_their_places(tmp_path):
    for name, lines in (("long.py", 30), ("short.py", 10), ("empty.py", 0)):
        (tmp_path / name).write_text("x = a + b\n" * lines, encoding="utf-8")
    files = [mutant.file for mutant in sample(tmp_path, ["empty.py", "long.py", "short.py"], 20, 1)]
    assert {name: files.count(name) for name in set(files)} == {"long.py": 15, "short.py": 5}


def test_a_statement_is_found_by_the_lines_that_run_with_it(tmp_path):
    lines = {mutant.start[0]: mutant.lines for mutant in drawn(tmp_path, STATEMENTS)}
    assert lines == {1: None, 4: None, 5: (5, 8), 7: (5, 8), 11: (9, 12)}


def test_equivalent_mutants_are_read_with_their_reasons(tmp_path):
    path = tmp_path / "equivalent.txt"
    path.write_text(
        "# a word before\n\na.py\n  - x > 1\n  + x >= 1\n  # x is even\n  - y = 1\n  + y = 2\n  # it is not read\n",
        encoding="utf-8",
    )
    assert listed(path) == {("a.py", "x > 1", "x >= 1"): "x is even", ("a.py", "y = 1", "y = 2"): "it is not read"}
