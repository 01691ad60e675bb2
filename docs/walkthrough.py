"""What docs/how_it_works.md shows between its markers: each function computes one block of text from the example."""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import example
import numpy as np

import spa_onnx
from spa_onnx.analysis import analyse
from spa_onnx.analysis.groups import Analysis, Group
from spa_onnx.analysis.shuffle import chains
from spa_onnx.config import Settings
from spa_onnx.execution.session import open_session
from spa_onnx.model.facts import Axis, Choice, Coupling, Fact, Indices, Positions, Span
from spa_onnx.model.model import Model
from spa_onnx.operators import OPERATORS, facts
from spa_onnx.pipeline import prune
from spa_onnx.plan.mask import mask
from spa_onnx.plan.plan import Plan
from spa_onnx.plan.rewrite import Rewritten, rewrite
from spa_onnx.report.result import Result
from spa_onnx.scoring import CRITERIA
from spa_onnx.scoring.aggregate import score_groups
from spa_onnx.scoring.context import ScoringContext
from spa_onnx.selection.propose import choose
from spa_onnx.synthetic.feeds import random_feed
from spa_onnx.validation.masked import NOISE_FACTOR, TOLERANCE, difference
from spa_onnx.validation.validate import SEEDS

RATIO = 0.5

EXACT = 1e-6
"""A relative difference below this is rounding."""

WIDTH = 110
"""Columns of wrapped text."""

ROOMS = (
    "model",
    "linalg",
    "layers",
    "operators",
    "execution",
    "analysis",
    "plan",
    "data",
    "synthetic",
    "statistics",
    "scoring",
    "repair",
    "selection",
    "validation",
    "report",
    "cli",
)
"""Folders of the package, in the order in which a model goes through them."""

FEW = 3
"""Indices of a span that are written out."""


def analysed(text: str = example.BLOCK) -> Analysis:
    """The analysis of the example, or of another text."""
    return analyse(Model.of(example.build(text)))


def pruned() -> Result:
    """The example at half its channels."""
    return prune(example.build(), ratio=RATIO, criterion="l1", check=False)


def carried_out() -> Rewritten:
    """The same with what the plan leaves of each axis."""
    analysis = analysed()
    return rewrite(
        analysis, Plan.removing(choose(analysis, Settings(ratio=RATIO, criterion="l1", scope="local")).removed, "")
    )


# --- facts ----------------------------------------------------------------------------------------------------------


def span_text(span: Span) -> str:
    """`bent[1] {k, k+4}`: the indices that channel k owns."""
    scale = "k" if span.inner == 1 else f"{span.inner}k"
    first = span.indices()[0]
    owned = [scale if index == 0 else f"{scale}+{index}" for index in first.tolist()]
    if len(owned) > FEW:
        owned = [f"{owned[0]} .. {owned[-1]}"] if span.outer == 1 else [*owned[:FEW], ".."]
    return f"{span.axis} {{{', '.join(owned)}}}"


def fact_lines(fact: Fact) -> Iterator[str]:
    """A fact in words; the options of a choice are indented."""
    if isinstance(fact, Coupling):
        parts = f", in {fact.parts} parts" if fact.parts > 1 else ""
        yield f"Coupling   {span_text(fact.a)} = {span_text(fact.b)}, k < {fact.a.count}{parts}"
    elif isinstance(fact, Choice):
        yield "Choice"
        for option in fact.options:
            yield f"  {option.name}"
            for inner in option.facts:
                yield from (f"    {line}" for line in fact_lines(inner))
    else:
        reason = f": {fact.why}" if hasattr(fact, "why") else ""
        yield f"{type(fact).__name__:<10} {fact.axis}{reason}"


def facts_block() -> str:
    """What the rules say about four of the nodes."""
    model = analysed().model
    lines = []
    for node in model.nodes:
        if node.name in ("stem", "mix", "flat", "odds"):
            lines.append(f"{node}: {', '.join(node.inputs)} -> {', '.join(node.outputs)}")
            stated = list(facts(node, model))
            lines += [f"  {line}" for fact in stated if not isinstance(fact, Positions) for line in fact_lines(fact)]
            stays = ", ".join(str(fact.axis) for fact in stated if isinstance(fact, Positions))
            lines += [f"  {'Positions':<10} {stays}"] if stays else []
    return "\n".join(lines)


# --- classes, channels, scores --------------------------------------------------------------------------------------


def classes(group: Group) -> list[tuple[list[Axis], Indices]]:
    """The classes of a group: axes whose indices correspond one to one share their array of owners."""
    found: dict[int, tuple[list[Axis], Indices]] = {}
    for axis, owner in group.owner.items():
        found.setdefault(id(owner), ([], owner))[0].append(axis)
    return list(found.values())


def classes_block() -> str:
    """Every class of the groups that can lose channels."""
    lines = []
    for group in analysed().prunable():
        lines.append(
            f"group {group.name}: {group.size} channels" + (f" in {group.parts} parts" if group.parts > 1 else "")
        )
        for axes, owner in classes(group):
            rows = [" ".join(map(str, row)) for row in np.atleast_2d(owner)]
            lines.append(f"  {owner.shape[-1]:2d} indices, owned by channels {' and '.join(rows)}")
            lines.append(f"     {', '.join(str(axis) for axis in axes)}")
    return "\n".join(lines)


def scores_block() -> str:
    """How the channels of one group get their L1 scores."""
    analysis = analysed()
    group = next(g for g in analysis.prunable() if g.name == "wide_w[0]")
    context = ScoringContext(analysis.model)
    lines = ["L1 norm of each slice"]
    for axis, scores in CRITERIA["l1"](group, context):
        lines.append(f"  {axis!s:<12}" + " ".join(f"{score:5.2f}" for score in scores.ravel()))
    lines.append("score of each channel")
    for normalise in ("none", "mean"):
        scores = score_groups([group], CRITERIA["l1"], context, "sum", normalise)[group.name]
        what = "sum" if normalise == "none" else "over mean"
        lines.append(f"  {what:<12}" + " ".join(f"{score:5.2f}" for score in scores))
    return "\n".join(lines)


def drop_block() -> str:
    """The channels that go at the ratio of the example."""
    analysis = analysed()
    drop = choose(analysis, Settings(ratio=RATIO, criterion="l1", scope="local")).removed
    sizes = {group.name: group.size for group in analysis.groups}
    return "\n".join(f"{name}: channels {', '.join(map(str, gone))} of {sizes[name]} go" for name, gone in drop.items())


# --- rewriting and validation ---------------------------------------------------------------------------------------


def shapes_block() -> str:
    """Constants before and after."""
    before, after = Model.of(example.build()), Model.of(pruned().model)
    lines = []
    for node in after.nodes:
        twin = before.producer[node.outputs[0]]
        for slot, name in enumerate(node.inputs):
            if after.is_constant(name):
                old, new = before.shape(twin.inputs[slot]), after.shape(name)
                values = ""
                if not after.is_float(name):
                    values = f"   values {before.constant(twin.inputs[slot])} -> {after.constant(name)}"
                lines.append(f"{twin.inputs[slot]:<8}{list(old or ())!s:<14} -> {list(new or ())}{values}")
    return "\n".join(lines)


def shuffle_block() -> str:
    """The permutation of a channel shuffle, and what the rewriter makes of it for two plans."""
    analysis = analysed(example.SHUFFLE)
    chain = chains(analysis.model)[0]
    order = chain.order(chain.outputs[0], 1)
    lines = [
        f"index of mixed[1]:    {' '.join(map(str, range(len(order))))}",
        f"index of first[1]:    {' '.join(map(str, order))}",
    ]
    lines.append("groups: " + "; ".join(f"{g.name} with {g.size} channels" for g in analysis.prunable()))
    for gone in ([2, 5], [1, 5]):
        result = rewrite(analysis, Plan.removing({analysis.prunable()[0].name: np.asarray(gone)}, "")).proto
        nodes = " -> ".join(node.op_type for node in result.graph.node)
        lines.append(f"without channels {gone[0]} and {gone[1]}: {nodes}")
    return "\n".join(lines)


def validation_block() -> str:
    """The differences between the original, masked and pruned model on one random input."""
    model, rewritten = analysed().model, carried_out()
    feed = random_feed(model, model.inference.dims, seed=0)
    dense, masked, small = (
        open_session(proto).run(feed)[0] for proto in (model.proto, mask(model, rewritten.removal), rewritten.proto)
    )
    gap = difference(masked, small)
    exact = f"below {EXACT:g}" if gap < EXACT else f"{gap:.1g}"
    return f"original and masked: {difference(dense, masked):.2f}\nmasked and pruned:   {exact}"


def plan_block() -> str:
    """The plan file of the example, one line per entry."""
    plan = pruned().plan
    lines = []
    for key, value in plan.items():
        if isinstance(value, list) and value:
            body = ",\n".join(f"   {_json(entry)}" for entry in value)
            lines.append(f' "{key}": [\n{body}\n ]')
        else:
            lines.append(f' "{key}": {_json(value)}')
    return "{\n" + ",\n".join(lines) + "\n}"


def _json(value: object) -> str:
    return json.dumps(value)


def operators_block() -> str:
    """The operators that have a rule."""
    return textwrap.fill(", ".join(sorted(OPERATORS)), WIDTH)


def tolerances_block() -> str:
    """The limits of the comparison with the masked model."""
    lines = [f"{name} outputs: {limit:g}" for name, limit in TOLERANCE.items()]
    return "\n".join([*lines, f"or {NOISE_FACTOR:g} times the noise floor; on {SEEDS} random inputs"])


def model_block() -> str:
    """The text of the example."""
    return example.BLOCK.strip()


def rooms_block() -> str:
    """The folders of the package and what each is for, in the order in which a model goes through them."""
    package = Path(spa_onnx.__file__).parent
    found = {path.parent.name for path in package.glob("*/__init__.py")}
    if found != set(ROOMS):
        raise RuntimeError(f"ROOMS names other folders than there are: {sorted(found ^ set(ROOMS))}")
    widest = max(map(len, ROOMS))
    lines = []
    for room in ROOMS:
        purpose = ast.get_docstring(ast.parse((package / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        lines += textwrap.wrap(
            purpose.splitlines()[0], WIDTH, initial_indent=f"{room:{widest}}  ", subsequent_indent=" " * (widest + 2)
        )
    return "\n".join(lines)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "rooms": rooms_block,
    "model": model_block,
    "facts": facts_block,
    "classes": classes_block,
    "scores": scores_block,
    "drop": drop_block,
    "shapes": shapes_block,
    "shuffle": shuffle_block,
    "validation": validation_block,
    "plan": plan_block,
    "operators": operators_block,
    "tolerances": tolerances_block,
}
"""Name in a marker -> its text."""
