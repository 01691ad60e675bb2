"""Sizes of symbolic dimensions: those at which a model can be analysed, and the smallest at which it runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TypeAlias

import onnx

from spa_onnx.analysis.groups import Analysis
from spa_onnx.errors import RefusedError, RuleError, UsageError
from spa_onnx.execution.session import Session
from spa_onnx.model.inference import is_plausible
from spa_onnx.model.model import Model, feeds
from spa_onnx.model.shapes import GUESSES, USUAL, choose_dims, resized, symbolic_dims
from spa_onnx.synthetic.feeds import PLAIN, Style, runs

Sizes: TypeAlias = Mapping[str, int]
"""Name of a symbolic dimension -> its size."""

Read: TypeAlias = Callable[[Sizes], Analysis]
"""Analyses the model at the given sizes."""

TRIES = 24
"""The most runs that the search for smaller sizes may take."""


def check_names(proto: onnx.ModelProto, dims: Sizes) -> None:
    """Check the names of given sizes.

    Raises:
        UsageError: No symbolic dimension of an input has this name.
    """
    names = list(dict.fromkeys(name for name, *_ in symbolic_dims(feeds(proto.graph))))
    for name in dims:
        if name not in names:
            raise UsageError(
                f"no symbolic dimension of an input is called {name!r}: "
                f"there is {', '.join(map(repr, names)) or 'none'}"
            )


def at_fitting_sizes(proto: onnx.ModelProto, given: Sizes, analyse: Callable[[Model], Analysis]) -> Analysis:
    """Analyse a model at the first guess of symbolic sizes at which no coupling rule contradicts the shapes.

    A model can be invalid at a guess although shape inference accepts it: a recurrent layer whose batch is fixed by a
    Reshape, for example, with states of another batch.

    Args:
        proto: The model.
        given: The sizes that the user gave.
        analyse: Analyses the model at the sizes of its shapes.

    Raises:
        RefusedError: The rules contradict the shapes at all guesses; the message names the dimensions.
        RuleError: They do so, and no dimension is symbolic.
    """
    first: Exception | None = None
    model = Model.of(proto, given)
    for guessed in chain([model], _at_other_guesses(proto, given, model.inference.dims)):
        found = _analysed(guessed, analyse)
        if isinstance(found, Analysis):
            return found
        first = first or found
    names = ", ".join(name for name in model.inference.dims if name not in given)
    if not isinstance(first, RuleError) or not names:
        raise first or RefusedError("the graph has no shapes")
    raise RefusedError(
        f"{first}: so it is at all sizes of symbolic dimensions that were tried; "
        f"give sizes with --dim NAME=SIZE (dimensions: {names})"
    ) from first


def _analysed(model: Model, analyse: Callable[[Model], Analysis]) -> Analysis | Exception:
    """Return the analysis, or the error of a rule."""
    try:
        return analyse(model)
    except (UsageError, RefusedError):
        raise
    except Exception as error:  # noqa: BLE001 - shapes that do not fit each other can make a rule raise anything
        return error


def _at_other_guesses(proto: onnx.ModelProto, given: Sizes, tried: Sizes) -> Iterator[Model]:
    """Yield the model at all guesses of symbolic sizes that leave no tensor empty, except those already tried."""
    seen = [dict(tried)]
    for guess in GUESSES:
        sizes = choose_dims(feeds(proto.graph), given, guess)
        if sizes in seen:
            continue
        seen.append(sizes)
        try:
            model = Model.of(proto, sizes)
        except RefusedError:
            continue
        if is_plausible(model.inference):
            yield model


def smallest(analysis: Analysis, session: Session, given: Sizes, read: Read, style: Style = PLAIN) -> Analysis:
    """Return the analysis at the smallest sizes at which the model runs and can lose as many channels.

    Only sizes above the first guess are made smaller, each down to that guess: first all dimensions of one size
    together, as the height and width of an image, then one by one. All steps that run the model take less time there.

    Args:
        analysis: The analysis at sizes at which the model runs.
        session: The model, ready to run.
        given: The sizes that the user gave, which stay.
        read: Analyses the model at given sizes.
        style: How inputs are drawn.
    """
    proto, tries = analysis.model.proto, iter(range(TRIES))
    inputs = feeds(proto.graph)
    least = choose_dims(inputs, given, GUESSES[0])
    alike: dict[int, list[str]] = defaultdict(list)
    for name, size in analysis.model.inference.dims.items():
        if size > least[name] and name not in given:
            alike[size].append(name)
    together = [names for _, names in sorted(alike.items(), reverse=True)]
    alone = [[name] for several in together if len(several) > 1 for name in several]
    for names in (*together, *alone):
        sizes = analysis.model.inference.dims
        lowest, highest = (max(known[name] for name in names) for known in (least, sizes))
        for size in (usual for usual in USUAL if lowest <= usual < highest):
            if next(tries, None) is None:
                return analysis
            smaller = _analysis_at(resized(inputs, sizes, dict.fromkeys(names, size)), analysis, session, read, style)
            if smaller is not None:
                analysis = smaller
                break
    return analysis


def _analysis_at(sizes: Sizes, analysis: Analysis, session: Session, read: Read, style: Style) -> Analysis | None:
    """Return the analysis at other sizes; None if the model does not run there, or can lose fewer channels."""
    if not runs(analysis.model, session, sizes, style):
        return None
    try:
        found = read(sizes)
    except (RefusedError, RuleError):
        return None
    return found if _channels(found) >= _channels(analysis) else None


def _channels(analysis: Analysis) -> int:
    """Return the number of channels that can be removed."""
    return sum(group.size for group in analysis.prunable())
