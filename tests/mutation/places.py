"""The mutants of the code, and a reproducible sample of them.

The operators are those of cosmic-ray and two of our own. Each place in a line gives at most one mutant, so that a
comparison with five variants counts no more than a sum with one.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names

Position: TypeAlias = tuple[int, int]
"""(line, column): lines count from 1, columns from 0, in characters."""

NEAREST = (
    "Add_Sub Sub_Add Mul_Add FloorDiv_Mul Div_Mul Mod_FloorDiv Pow_Mul BitOr_BitAnd BitAnd_BitOr BitXor_BitOr".split()
)
"""The replacement of each binary operator that is hardest to notice, out of eleven."""

REMOVED = ("Delete_USub", "Delete_Invert", "Delete_Not")
"""Unary operators are removed; turning a minus into a plus is the same."""


class SwapMembership(Operator):
    """Replace `in` by `not in`, and the other way round."""

    def mutation_positions(self, node: parso.tree.NodeOrLeaf) -> Iterator[tuple[Position, Position]]:
        """Yield every `in` and `not in` of a comparison."""
        for word in self._words(node):
            yield word.start_pos, word.end_pos

    def mutate(self, node: parso.tree.BaseNode, index: int) -> parso.tree.NodeOrLeaf:
        """Return the comparison with the word of this index replaced."""
        word = self._words(node)[index]
        other = " in" if _code(word) == "not in" else " not in"
        node.children[node.children.index(word)] = parso.parse(other)
        return node

    @staticmethod
    def _words(node: parso.tree.NodeOrLeaf) -> list[parso.tree.NodeOrLeaf]:
        return (
            [word for word in node.children[1::2] if _code(word) in ("in", "not in")]
            if node.type == "comparison"
            else []
        )

    @classmethod
    def examples(cls) -> Iterable[Example]:
        """Return examples, as cosmic-ray requires."""
        return (Example("x in y", "x not in y"), Example("x not in y", "x in y"))


class NegateFilter(Operator):
    """Negate the `if` of a comprehension."""

    def mutation_positions(self, node: parso.tree.NodeOrLeaf) -> Iterator[tuple[Position, Position]]:
        """Yield the condition of every filter."""
        if node.type in ("comp_if", "old_comp_if"):
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: parso.tree.BaseNode, index: int) -> parso.tree.NodeOrLeaf:
        """Return the filter with a negated condition."""
        del index
        node.children[1] = parso.parse(f" not ({_code(node.children[1])})")
        return node

    @classmethod
    def examples(cls) -> Iterable[Example]:
        """Return examples, as cosmic-ray requires."""
        return (Example("[x for x in y if x > 1]", "[x for x in y if not (x > 1)]"),)


def _code(node: parso.tree.NodeOrLeaf) -> str:
    return str(node.get_code(include_prefix=False))


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file.

    Args:
        file: The path of the file.
        start: The place of the change.
        inside: The name of the function.
        lines: The first and last line of the statement; None if it runs on import.
        before: The lines that change, without indentation.
        after: The same lines after the change.
        code: The whole changed file.
    """

    file: str
    start: Position
    inside: str
    lines: tuple[int, int] | None
    before: str
    after: str
    code: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The key of the mutant in equivalent.txt, which does not depend on its position in the file."""
        return f"{self.file} {self.inside}".strip(), self.before, self.after

    def __str__(self) -> str:
        return f"{self.file} {self.inside} ({self.start[0]})\n  - {self.before}\n  + {self.after}"


def operators() -> Iterator[Operator]:
    """Yield the mutation operators."""
    for name in sorted(operator_names()):
        short = name.rsplit("/", 1)[-1]
        family, _, change = short.partition("_")
        if family == "ReplaceBinaryOperator" and change not in NEAREST:
            continue
        if family == "ReplaceUnaryOperator" and change not in REMOVED:
            continue
        # `is` for `==` holds of all small numbers, and says nothing about a test
        if family == "ReplaceComparisonOperator" and "Is" in change and change not in ("Is_IsNot", "IsNot_Is"):
            continue
        if not get_operator(name).arguments():
            yield get_operator(name)()
    yield from (SwapMembership(), NegateFilter())


def places(code: str) -> dict[Position, list[tuple[Operator, int]]]:
    """Return each place of a file that can change -> its variants: an operator, and the occurrence in the file."""
    tree, left_out = get_ast(code), list(_left_out(code))
    nodes = list(ast_nodes(tree))
    found: dict[Position, list[tuple[Operator, int]]] = defaultdict(list)
    for operator in operators():
        starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(starts):
            if not any(first <= start < last for first, last in left_out):
                found[start].append((operator, occurrence))
    return dict(sorted(found.items()))


def _made(file: str, code: str, start: Position, ways: Sequence[tuple[Operator, int]]) -> Mutant | None:
    """Return the mutant of the first variant that changes the program; None if none does."""
    for operator, occurrence in ways:
        changed = mutate_code(code, operator, occurrence)
        try:
            if changed is not None and ast.dump(ast.parse(changed)) != ast.dump(ast.parse(code)):
                return Mutant(file, start, *_statement(code, start), *_difference(code, changed), changed)
        except SyntaxError:
            continue
    return None


def _statement(code: str, start: Position) -> tuple[str, tuple[int, int] | None]:
    """Return the name of the function around a place, and the lines of its statement if a call runs it."""
    around: ast.AST = ast.parse(code)
    function, called, span = "", False, (0, 0)
    while inner := [node for node in ast.iter_child_nodes(around) if _covers(node, start)]:
        head, around = around, inner[0]
        called |= isinstance(head, ast.FunctionDef) and around in head.body
        called |= isinstance(head, ast.Lambda) and around is head.body
        if isinstance(around, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{around.name}".strip(".")
        if isinstance(around, ast.For | ast.While | ast.If | ast.FunctionDef | ast.ClassDef):
            span = around.lineno, max(around.lineno, around.body[0].lineno - 1)
        elif isinstance(around, ast.stmt):
            span = around.lineno, around.end_lineno or around.lineno
    return function, span if called else None


def _covers(node: ast.AST, start: Position) -> bool:
    """Return whether a node contains a place, decorators included."""
    if isinstance(node, ast.comprehension | ast.arguments | ast.withitem):
        return any(_covers(child, start) for child in ast.iter_child_nodes(node))
    if not isinstance(node, ast.stmt | ast.expr | ast.arg | ast.keyword | ast.excepthandler):
        return False
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
    begin = (node.lineno, node.col_offset) if first == node.lineno else (first, 0)
    return begin <= start <= (node.end_lineno or 0, node.end_col_offset or 0)


def _difference(code: str, changed: str) -> tuple[str, str]:
    """Return the lines that differ, each side joined to one line."""
    old, new = code.splitlines(), changed.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return " ".join(" ".join(old).split()), " ".join(" ".join(new).split())


def _left_out(code: str) -> Iterator[tuple[Position, Position]]:
    """Yield the ranges in which a change would affect only messages, types or assertions."""
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        for part in _unread(node):
            line, column = _position(lines, part.lineno, part.col_offset)
            start = line, column - isinstance(node, ast.ClassDef)  # with the @ before it
            yield start, _position(lines, part.end_lineno or 0, part.end_col_offset or 0)


def _position(lines: Sequence[str], line: int, offset: int) -> Position:
    """Return (line, column in characters); `ast` counts columns in bytes."""
    return line, len(lines[line - 1].encode()[:offset].decode())


def _unread(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Yield the parts of a node that are not mutated."""
    match node:
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            yield node
        case ast.JoinedStr():  # reasons, messages and names
            yield node
        case (
            ast.arg(annotation=ast.expr() as types)
            | ast.AnnAssign(annotation=types)
            | ast.FunctionDef(returns=ast.expr() as types)
        ):
            yield types
        case ast.Raise(
            exc=ast.expr() as error
        ):  # the words of a message; whether it is raised is a condition before it
            yield error
        case ast.ClassDef():  # frozen, slots: a promise to the reader
            yield from node.decorator_list
        case ast.Call(func=ast.Name(id="zip")):  # strict asserts that lengths agree
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "strict")


def sample(root: Path, files: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Return at least `count` mutants: each file has its share by its number of places, and at least one if it has any.

    The sample of a file depends only on the text of its lines and on the seed, so a line that moves keeps its mutants.
    """
    codes = {file: (root / file).read_text(encoding="utf-8") for file in files}
    found = {file: places(code) for file, code in codes.items()}
    total = sum(map(len, found.values()))
    return [
        mutant
        for file in files
        for mutant in _drawn(file, codes[file], found[file], -(-count * len(found[file]) // total), seed)
    ]


def _drawn(
    file: str, code: str, found: Mapping[Position, list[tuple[Operator, int]]], share: int, seed: int
) -> list[Mutant]:
    """Return the first `share` mutants of a file in a random order, sorted by their places."""
    lines, seen, ranked = code.splitlines(), Counter[str](), []
    for start, ways in found.items():
        line = lines[start[0] - 1].strip()
        seen[line] += 1
        rank = hashlib.sha256(f"{seed} {line} {seen[line]}".encode()).digest()
        first = int.from_bytes(rank[:4], "big") % len(ways)
        ranked.append((rank, start, ways[first:] + ways[:first]))
    made = (_made(file, code, start, ways) for _, start, ways in sorted(ranked, key=lambda place: place[0]))
    return sorted(islice((mutant for mutant in made if mutant), share), key=lambda mutant: mutant.start)


def listed(path: Path) -> Mapping[tuple[str, str, str], str]:
    """Return the mutants that a file lists as equivalent: (file and function, line before, line after) -> reason."""
    found, file, before, after = {}, "", "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        mark, text = line[:4], line[4:].strip()
        if mark == "  - ":
            before = text
        elif mark == "  + ":
            after = text
        elif mark == "  # ":
            found[file, before, after] = text
        elif line and not line.startswith(("#", " ")):
            file = line.strip()
    return found
