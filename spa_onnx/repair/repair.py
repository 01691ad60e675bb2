"""How what stays is repaired: layer by layer, and once more in the order of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from spa_onnx.config import Settings
from spa_onnx.execution.session import Feed, feed_size
from spa_onnx.layers import LinearLayer, linear_layers
from spa_onnx.model.folding import Array
from spa_onnx.plan.removal import Removal
from spa_onnx.repair.layerwise import refit_layers
from spa_onnx.repair.sequential import refit_in_order
from spa_onnx.statistics.calibration import Calibration
from spa_onnx.statistics.collect import View, view_of
from spa_onnx.statistics.memory import COPIES_IN_ORDER, most_columns

MOST_NAMES = 3
"""Weights that a note names."""


def refitted(known: Calibration, removal: Removal, settings: Settings) -> dict[str, Array]:
    """Constant -> its new value, in the shape of the original."""
    refits = settings.repair == "obs"
    values = refit_layers(
        known.model, known.layers, known.statistics, removal, regularisation=known.regularisation, refits=refits
    )
    if refits and known.in_order:
        free = [c for c in linear_layers(known.model) if not _is_excluded(c, settings) and c.data not in c.node.outputs]
        feeds = known.first(known.in_order)
        values = refit_in_order(
            known.model, free, feeds, removal, values, settings.seed, graph=known.run, look=_look(known, free, feeds)
        )
    return values


def _look(known: Calibration, found: Sequence[LinearLayer], feeds: Sequence[Feed]) -> Callable[[LinearLayer], View]:
    """What is looked at for each product: as much as memory has room for, and what made-up samples do in detail is not worth the time."""
    most, samples = most_columns(found, known.memory, COPIES_IN_ORDER), sum(map(feed_size, feeds))
    return lambda layer: view_of(layer, samples, most.get(layer.key), closely=not known.synthetic)


def _is_excluded(layer: LinearLayer, settings: Settings) -> bool:
    """Whether its node or weight is to stay what it is."""
    return any(
        pattern.search(name)
        for pattern in settings.patterns()
        for name in (layer.node.name, layer.weight, *layer.node.outputs)
    )


def not_refitted_weights(known: Calibration, removal: Removal, values: Mapping[str, Array]) -> Iterator[str]:
    """The products that lost inputs and still have their old weights."""
    lost = [layer for layer in known.layers if layer.axis in removal]
    kept = sorted({layer.weight for layer in lost if layer.weight not in values})
    if kept:
        names = ", ".join(kept[:MOST_NAMES]) + (", ..." if len(kept) > MOST_NAMES else "")
        yield (
            f"{len(kept)} of the {len({layer.weight for layer in lost})} weights that lost inputs were not refitted, because others "
            f"read them, their inputs were not finite, or what fits best is out of their type's range: {names}"
        )
