"""The pictures of docs/how_it_works.md, drawn from the analysis of the example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product

from svg import INK, SOFT, box, line, page, path, text
from walkthrough import analysed, carried_out, classes, pruned

from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.model.facts import Axis
from spa_onnx.model.model import Model
from spa_onnx.model.node import Node

HUES: Sequence[tuple[str, Sequence[str]]] = (
    ("#1d5fa8", ("#bfd9f5", "#8fbdec")),
    ("#b45f06", ("#ffdcb0", "#fabd74")),
    ("#2a7a3b", ("#c6e8c9", "#93d09b")),
)
"""For each group: the colour of its lines, and two shades that its channels take in turn."""

GREY = ("#8a94a0", ("#e6e9ed", "#e6e9ed"))
LOST = "#ffffff"
CELL = 22.0


# --- 1: the operators -----------------------------------------------------------------------------------------------

PITCH, BOX = 118.0, (92.0, 46.0)
PLACES = {
    "image": (0, 0),
    "stem": (1, 0),
    "trunk": (2, 0),
    "wide": (3, 0),
    "bent": (4, 0),
    "mix": (5, 0),
    "thin": (6, 0),
    "total": (7, 0),
    "pooled": (7, 1),
    "flat": (6, 1),
    "scores": (5, 1),
    "odds": (4, 1),
}
"""Column and row of the node that makes each tensor."""


def _corner(name: str) -> tuple[float, float]:
    column, row = PLACES[name]
    return 20 + column * PITCH, 92 + row * 168


def _sizes(model: Model, name: str) -> str:
    shape = model.shape(name) or ()
    batch = model.inference.dims["N"]
    is_activation = not model.is_constant(name)
    return (
        "["
        + ",".join("N" if is_activation and dim == 0 and size == batch else str(size) for dim, size in enumerate(shape))
        + "]"
    )


def _operator(node: Node, model: Model) -> Iterator[str]:
    x, y = _corner(node.name)
    middle = x + BOX[0] / 2
    weights = [name for name in node.inputs if model.is_constant(name)]
    yield box(x, y, BOX, "#e8f0fb" if weights else "#f1f3f6")
    groups = node.attributes.get("group")
    yield text(middle, y + (20 if groups else 28), node.op, 14, bold=True)
    if groups:
        yield text(middle, y + 37, f"group = {groups}", 11, fill=SOFT)
    yield text(middle, y - 20, node.outputs[0], 12, mono=True, bold=True)
    yield text(middle, y - 7, _sizes(model, node.outputs[0]), 10, mono=True, fill=SOFT)
    for place, name in enumerate(weights):
        yield text(middle, y + 62 + 27 * place, name, 11, mono=True)
        yield text(middle, y + 74 + 27 * place, _sizes(model, name), 10, mono=True, fill=SOFT)


def _flow(source: str, target: str) -> str:
    (x, y), (u, v) = _corner(source), _corner(target)
    half = BOX[1] / 2
    if y == v and x < u:
        return line((x + BOX[0], y + half), (u - 2, v + half), arrow=True)
    if y == v:
        return line((x, y + half), (u + BOX[0] + 2, v + half), arrow=True)
    return line((x + BOX[0] / 2, y + BOX[1]), (u + BOX[0] / 2, v - 36), arrow=True)


def operators() -> str:
    """The graph: a stem, a residual branch with a grouped convolution, pooling and a classifier."""
    model = analysed().model
    x, y = _corner("image")
    parts = [text(20, 30, "The example: operators, tensors and their sizes", 15, bold=True, anchor="start")]
    parts += [box(x, y, BOX, "#ffffff", radius=22), text(x + 46, y + 28, "image", 14)]
    parts.append(text(x + 46, y - 7, _sizes(model, "image"), 10, mono=True, fill=SOFT))
    for node in model.nodes:
        parts += _operator(node, model)
        flows = [name for name in node.inputs if name in PLACES]
        parts += [_flow(name, node.name) for name in flows if (name, node.name) != ("trunk", "total")]
    (start, y), (end, _) = _corner("trunk"), _corner("total")
    left, right = start + BOX[0] + 12, end - 12
    parts.append(
        path(f"M{start + BOX[0]:g},{y + 12:g} H{left:g} V{y - 42:g} H{right:g} V{y + 12:g} H{end - 2:g}", arrow=True)
    )
    parts.append(text((left + right) / 2, y - 48, "shortcut: ties stem and thin together", 11, fill=SOFT))
    x, y = _corner("odds")
    parts += [line((x, y + 23), (x - 24, y + 23), arrow=True), text(x - 30, y + 27, "graph output", 12, anchor="end")]
    return page(20 + 7 * PITCH + BOX[0] + 20, 372, "The operators of the example", parts)


# --- 2: axes and couplings ------------------------------------------------------------------------------------------

LEFT = 40.0

Row = tuple[float, float]
"""Upper left corner of a strip."""


def _shade(hue: tuple[str, Sequence[str]], channel: int) -> str:
    return hue[1][channel % len(hue[1])]


def _strip(row: Row, owner: Sequence[int], hue: tuple[str, Sequence[str]]) -> Iterator[str]:
    """One cell per index of a class, with the number of the channel that owns it."""
    x, y = row
    for index, channel in enumerate(owner):
        yield box(x + index * CELL, y, (CELL, CELL), _shade(hue, channel), hue[0], 0)
        yield text(x + (index + 0.5) * CELL, y + 15.5, str(channel), 11)


def _names(axes: Sequence[Axis], y: float, x: float, width: int) -> Iterator[str]:
    """The axes of a class, in as many lines as they need."""
    lines, current = [], ""
    for name in map(str, axes):
        longer = f"{current}, {name}" if current else name
        if len(longer) > width:
            lines.append(f"{current},")
            longer = name
        current = longer
    for place, content in enumerate([*lines, current]):
        yield text(x, y + 13 * place - 6.5 * len(lines), content, 11, mono=True, anchor="start")


def _links(analysis: Analysis, group: Group, rows: Mapping[Axis, Row], colour: str) -> Iterator[str]:
    """Lines for the couplings that do not tie index to index."""
    seen = set()
    for near, far, coupling in analysis.graph.subgraph(group.owner).edges(data="coupling"):
        ends = rows[near], rows[far]
        if ends[0] == ends[1] or ends in seen:
            continue
        seen.add(ends)
        spans = sorted((coupling.a, coupling.b), key=lambda span: rows[span.axis][1])
        (x, top), (u, bottom) = (rows[span.axis] for span in spans)
        for above, below in zip(spans[0].indices(), spans[1].indices(), strict=True):
            own = coupling.parts > 1 and len(above) > len(below)  # every part has the lower axis for itself
            pairs = (
                zip(above, above if own else below, strict=True)
                if own or len(above) == len(below)
                else product(above, below)
            )
            for a, b in pairs:
                yield line((x + (a + 0.5) * CELL, top + CELL), (u + (b + 0.5) * CELL, bottom), colour, 1.3)


def _arcs(owner: Sequence[int], row: Row, colour: str) -> Iterator[str]:
    """Over a strip: indices of one channel that do not lie next to each other."""
    x, y = row
    for channel in sorted(set(owner)):
        places = [index for index, found in enumerate(owner) if found == channel]
        for a, b in pairwise(places):
            if b > a + 1:
                start, end = x + (a + 0.5) * CELL, x + (b + 0.5) * CELL
                yield path(
                    f"M{start:g},{y:g} C{start + 8:g},{y - 26:g} {end - 8:g},{y - 26:g} {end:g},{y:g}", colour, 1.1
                )


def _group_panel(analysis: Analysis, group: Group, y: float, hue: tuple[str, Sequence[str]]) -> tuple[list[str], float]:
    parted = f", as many go from each of {group.parts} parts" if group.parts > 1 else ""
    parts = [
        box(16, y, (868, 148), "#ffffff", "#e1e6ed", 8),
        text(
            LEFT,
            y + 22,
            f"group {group.name}: {group.size} channels{parted}",
            13,
            bold=True,
            anchor="start",
            fill=hue[0],
        ),
    ]
    rows: dict[Axis, Row] = {}
    found = [(axes, owner.ravel()) for axes, owner in classes(group)]
    longest = max(len(owner) for _, owner in found)
    for place, (axes, owner) in enumerate(found):
        row = LEFT + (longest - len(owner)) / 2 * CELL, y + 50 + place * 66
        rows.update(dict.fromkeys(axes, row))
        if place == 0:
            parts += _arcs(owner.tolist(), row, hue[0])
        parts += _strip(row, owner.tolist(), hue)
        right = row[0] + len(owner) * CELL + 14
        parts += _names(axes, row[1] + 15, right, int((874 - right) / 6.8))
    parts[2:2] = _links(analysis, group, rows, hue[0])
    return parts, y + 158


def couplings() -> str:
    """Classes of axes as strips, and what ties them together."""
    analysis = analysed()
    title = "Axes and couplings: a strip is a class of axes, a cell an index, its number the channel"
    parts = [text(20, 30, title, 15, bold=True, anchor="start")]
    y = 46.0
    for group, hue in zip(analysis.prunable(), HUES, strict=True):
        more, y = _group_panel(analysis, group, y, hue)
        parts += more
    pinned = analysis.pinned()
    parts += [box(16, y, (868, 46 + 34 * len(pinned)), "#ffffff", "#e1e6ed", 8)]
    parts.append(text(LEFT, y + 22, "pinned: nothing may go", 13, bold=True, anchor="start", fill=GREY[0]))
    for place, group in enumerate(pinned):
        top = y + 34 + 34 * place
        parts += _strip((LEFT, top), list(range(group.size)), GREY)
        names = ", ".join(map(str, group.owner))
        parts.append(text(LEFT + 8 * CELL, top + 15, names, 11, mono=True, anchor="start"))
        parts.append(text(866, top + 15, group.cause, 11, anchor="end", fill=SOFT))
    return page(900, y + 60 + 34 * len(pinned), "Axes and couplings of the example", parts)


# --- 3: before and after --------------------------------------------------------------------------------------------

GRID = 13.0


def _owner_of(analysis: Analysis, axis: Axis) -> tuple[tuple[str, Sequence[str]], Sequence[int]]:
    """The colours of an axis and the channel of each of its indices."""
    for group, hue in zip(analysis.prunable(), HUES, strict=True):
        if axis in group.owner:
            return hue, group.owner[axis].reshape(-1, group.owner[axis].shape[-1])[0].tolist()
    return GREY, list(range((analysis.model.shape(axis.tensor) or ())[axis.dim]))


def _matrix(name: str, x: float, y: float, kept: Sequence[tuple[int, Sequence[int]]], *, lost: bool) -> Iterator[str]:
    """Draw rows and columns of a weight with the colour of their group at the edge.

    lost: draw all of them, and those that are removed in white.

    kept: the rows that stay, each with the columns that stay in it.
    """
    analysis = analysed()
    rows, columns = (_owner_of(analysis, Axis(name, dim)) for dim in (0, 1))
    stay = dict(kept)
    shown = [(row, range(len(columns[1]))) for row in range(len(rows[1]))] if lost else kept
    for i, (row, inside) in enumerate(shown):
        yield box(x - 10, y + i * GRID, (7, GRID), _shade(rows[0], rows[1][row]), rows[0][0], 0)
        for j, column in enumerate(inside):
            stays = column in stay.get(row, ())
            yield box(
                x + j * GRID,
                y + i * GRID,
                (GRID, GRID),
                "#dfe7f1" if stays else LOST,
                "#a9b6c6" if stays else "#dadfe5",
                0,
            )
            if not stays:
                corner = x + j * GRID, y + i * GRID
                yield line((corner[0] + 3, corner[1] + 3), (corner[0] + GRID - 3, corner[1] + GRID - 3), "#d98880", 1)
    for j, column in enumerate(shown[0][1]):
        yield box(x + j * GRID, y - 10, (GRID, 7), _shade(columns[0], columns[1][column]), columns[0][0], 0)


def shapes() -> str:
    """The weights before and after, with the rows and columns that go struck out."""
    analysis, removal = analysed(), carried_out().removal
    after = Model.of(pruned().model)
    parts = [
        text(
            20,
            30,
            "The weights before and after: each square is a kernel, struck out where it goes",
            15,
            bold=True,
            anchor="start",
        )
    ]
    parts += [
        text(20, y, what, 13, bold=True, anchor="start", fill=SOFT) for what, y in (("before", 62), ("after", 226))
    ]
    x = 104.0
    for name in ("stem_w", "wide_w", "mix_w", "thin_w", "head_w"):
        every = [range(size) for size in (analysis.model.shape(name) or ())]
        cuts = [[kept.get(dim, every[dim]) for dim in (0, 1)] for kept in removal.slices(name)]
        kept = [(int(row), [int(column) for column in columns]) for rows, columns in cuts for row in rows]
        width = max((analysis.model.shape(name) or ())[1] * GRID, 78)
        parts += [*_matrix(name, x, 70, kept, lost=True), *_matrix(name, x, 234, kept, lost=False)]
        for y, model in ((188, analysis.model), (316, after)):
            parts.append(text(x - 10, y, name, 11, mono=True, bold=True, anchor="start", fill=INK))
            parts.append(
                text(x - 10, y + 13, str(list(model.shape(name) or ())), 10, mono=True, anchor="start", fill=SOFT)
            )
        x += width + 36
    names = [(group.name, hue[0]) for group, hue in zip(analysis.prunable(), HUES, strict=True)] + [("pinned", GREY[0])]
    for place, (name, colour) in enumerate(names):
        parts += [box(104 + 150 * place, 352, (12, 12), colour, colour, 2)]
        parts += [text(122 + 150 * place, 362, name if name == "pinned" else f"group {name}", 11, anchor="start")]
    return page(x - 4, 382, "The weights of the example before and after", parts)


PICTURES: Mapping[str, Callable[[], str]] = {"operators": operators, "couplings": couplings, "shapes": shapes}
"""File name without .svg -> the picture."""
