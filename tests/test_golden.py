"""The groups of every net, kept as text: a rule that couples too much keeps the law, and only a reader sees it.

After a change that is meant, write the files again with `python tests/test_golden.py --write` and read the diff.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nets import FAMILIES
from nets.build import Build

from spa_onnx.analysis import analyse
from spa_onnx.analysis.groups import Group
from spa_onnx.model.facts import Axis
from spa_onnx.model.model import Model

GOLDEN = Path(__file__).parent / "golden"


def described(name: str, build: Build) -> Iterator[str]:
    """Return the groups of a net: those with weights that are pinned, and the free ones.

    The pinned ones have the reason, the free ones what each channel owns.
    """
    yield f"=== {name}"
    analysis = analyse(Model.of(build()))
    held = {group.name for group in analysis.pinned()}
    for group in analysis.groups:
        if group.pinned and group.name not in held:
            continue
        parts = f" in {group.parts} parts" if group.parts > 1 else ""
        yield f"{group.name} {group.size}{parts}" + (f" pinned: {group.pinned}" if group.pinned else "")
        if not group.pinned:
            yield from _axes(group)
    yield ""


def _axes(group: Group) -> Iterator[str]:
    """The axes of a group, those with the same owners on one line."""
    lines: dict[str, list[str]] = {}
    for axis, owner in group.owner.items():
        rows = "; ".join(map(compact, owner)) if owner.ndim > 1 else compact(owner)
        lines.setdefault(rows, []).append(str(axis))
    for owners, axes in lines.items():
        yield f"    {' '.join(axes)}" + ("" if owners == f"0..{group.size - 1}" else f"  <- {owners}")


def compact(owner: np.ndarray) -> str:
    """Owners as runs: `0..3` counts up, `2*4` repeats, `(0..3)*2` repeats a row, `-` is nobody's."""
    values = owner.tolist()
    for period in range(1, len(values) // 2 + 1):
        if len(values) % period == 0 and values == values[:period] * (len(values) // period) and period > 1:
            return f"({compact(owner[:period])})*{len(values) // period}"
    parts = []
    while values:
        up = next((i for i, v in enumerate(values) if v != values[0] + i or v < 0), len(values))
        flat = next((i for i, v in enumerate(values) if v != values[0]), len(values))
        word = "-" if values[0] < 0 else str(values[0])
        parts.append(f"{word}..{values[up - 1]}" if up > max(flat, 2) else f"{word}*{flat}" if flat > 1 else word)
        values = values[max(up if up > 2 else 1, flat) :]
    return " ".join(parts)


def text(family: str) -> str:
    return "\n".join(line for name, build in FAMILIES[family].items() for line in described(name, build))


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_those_on_record(family):
    assert text(family).splitlines() == (GOLDEN / f"{family}.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        ([0, 1, 2, 3], "0..3"),
        ([0, 0, 0, 1, 1, 1], "0*3 1*3"),
        ([0, 1, 2, 0, 1, 2], "(0..2)*2"),
        ([-1, -1, 0, 1, 2, -1], "-*2 0..2 -"),
        ([0, 4, 1, 5], "0 4 1 5"),
    ],
)
def test_owners_are_written_as_runs(owner, expected):
    assert compact(np.asarray(owner)) == expected


def test_a_group_with_one_owner_moved_reads_differently():
    groups = [Group("g", 3, {Axis("w", 0): np.asarray(owner)}) for owner in ([0, 1, 2], [0, 2, 1])]
    assert list(_axes(groups[0])) != list(_axes(groups[1]))


if __name__ == "__main__" and "--write" in sys.argv:
    for written in FAMILIES:
        (GOLDEN / f"{written}.txt").write_text(text(written), encoding="utf-8")
