"""Working inputs: those at which a model runs, given by the user or drawn, and sizes of its symbolic dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import onnx

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, Session
from spa_onnx.model.model import Model, feeds
from spa_onnx.model.traits import Array
from spa_onnx.synthetic.feeds import PLAIN, Style, dims_to_try, random_feed

FEWER_IDS = (2, 1)
"""Upper bounds of integers that are tried after those of the tables: ids may index what only a run makes."""


@dataclass(frozen=True, slots=True)
class WorkingInputs:
    """Inputs at which a model runs.

    Args:
        dims: The size of each symbolic dimension, by name.
        style: How random inputs are drawn.
        given: Some of the user's samples; empty to draw random inputs.
    """

    dims: Mapping[str, int] = field(default_factory=dict)
    style: Style = PLAIN
    given: tuple[Feed, ...] = ()

    @property
    def kind(self) -> str:
        """Return what the inputs are, for reports."""
        return "given samples" if self.given else "random inputs"

    def feeds(self, model: Model, count: int) -> Iterator[Feed]:
        """Yield at most `count` feeds of the model."""
        yield from islice(
            self.given or (random_feed(model, self.dims, seed, self.style) for seed in range(count)), count
        )


def working_inputs(
    model: Model, session: Session, user_dims: Mapping[str, int], given: Sequence[Feed] = ()
) -> WorkingInputs:
    """Return inputs at which the model runs, with finite outputs if there are such.

    Args:
        model: The model.
        session: The same model, ready to run.
        user_dims: The sizes that the user gave.
        given: Some of the user's samples, which are then the ones that are tried.

    Raises:
        RefusedError: The model runs on none of the inputs that are tried.
    """
    if given:
        session.run(given[0])
        return WorkingInputs({**user_dims, **dims_of(feeds(model.proto.graph), given[0])}, given=tuple(given))
    first_error: RefusedError | None = None
    tried: list[dict[str, int]] = []
    for dims in dims_to_try(model, user_dims):
        if dims in tried:
            continue
        tried.append(dims)
        try:
            return _drawn_at(model, session, dims)
        except RefusedError as error:
            first_error = first_error or error
    names = ", ".join(tried[0]) or "none symbolic"
    raise RefusedError(
        f"{first_error}; give samples with --data, or sizes with --dim NAME=SIZE (dimensions: {names}), "
        "or use --no-validate"
    )


def dims_of(inputs: Sequence[onnx.ValueInfoProto], feed: Feed) -> dict[str, int]:
    """Return the sizes of symbolic dimensions in a feed, by name; an unnamed one is called `input:position`."""
    return {
        dim.dim_param or f"{value.name}:{axis}": size
        for value in reversed(inputs)
        for axis, (dim, size) in enumerate(zip(value.type.tensor_type.shape.dim, feed[value.name].shape, strict=False))
        if dim.dim_value < 1
    }


def _drawn_at(model: Model, session: Session, dims: Mapping[str, int]) -> WorkingInputs:
    """Return random inputs of these sizes on which the model runs; raise RefusedError if there are none."""
    styles = (PLAIN, *(Style(most=most) for most in FEWER_IDS if _inputs_of_kind(model, "iu")))
    errors: list[RefusedError] = []
    for style in styles:
        try:
            outputs = session.run(random_feed(model, dims, 0, style))
        except RefusedError as error:
            errors.append(error)
            continue
        is_finite = all(map(_is_finite, outputs))
        return WorkingInputs(dims, style if is_finite else _finite_style(model, session, dims, style))
    raise errors[0]


def _finite_style(model: Model, session: Session, dims: Mapping[str, int], style: Style) -> Style:
    """Return a style with constant float inputs at which all outputs are finite; the given one if there is none."""
    for constants in _constants_to_try(model):
        candidate = replace(style, constants=constants)
        with suppress(RefusedError):
            if all(map(_is_finite, session.run(random_feed(model, dims, 0, candidate)))):
                return candidate
    return style


def _constants_to_try(model: Model) -> Iterator[dict[str, float]]:
    """Yield constants for float inputs that may be masks: those called so, or each in turn, at 1 and at 0."""
    names = _inputs_of_kind(model, "f")
    masks = [name for name in names if "mask" in name.lower()]
    for value in (1.0, 0.0):
        if masks:
            yield dict.fromkeys(masks, value)
    for name in names[1:] + names[:1]:
        for value in (1.0, 0.0):
            yield {name: value}


def _inputs_of_kind(model: Model, kinds: str) -> list[str]:
    """Return the names of the inputs whose type is of one of these kinds of numpy."""
    return [
        value.name
        for value in feeds(model.proto.graph)
        if value.type.tensor_type.elem_type
        and np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).kind in kinds
    ]


def _is_finite(output: Array) -> bool:
    """Return whether an output holds no NaN or infinity."""
    return output.dtype.kind != "f" or bool(np.isfinite(output).all())
