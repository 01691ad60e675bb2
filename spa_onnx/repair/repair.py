"""The repair step: layer by layer first, then in the order of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from spa_onnx.config import Settings
from spa_onnx.execution.session import Feed, feed_size
from spa_onnx.layers import LinearLayer, linear_layers
from spa_onnx.model.folding import Array
from spa_onnx.model.model import is_batched
from spa_onnx.plan.removal import Removal
from spa_onnx.repair.layerwise import refit_layers
from spa_onnx.repair.sequential import SampleRun, refit_in_order
from spa_onnx.statistics.calibration import Calibration
from spa_onnx.statistics.memory import SEQUENTIAL_MATRIX_COPIES, column_limits
from spa_onnx.statistics.subsampling import Subsampling, subsampling

MOST_NAMED_WEIGHTS = 3
"""The most weights that a note names."""


def refitted(calibration: Calibration, removal: Removal, settings: Settings) -> dict[str, Array]:
    """Repair the model as the settings say.

    Returns:
        Constant -> new value in the original's shape.
    """
    model, refits = calibration.model, settings.repair == "obs"
    values = refit_layers(
        model,
        calibration.layers,
        calibration.statistics,
        removal,
        regularisation=calibration.regularisation,
        refits=refits,
    )
    if not refits or not calibration.sequential_samples:
        return values
    layers = [
        layer
        for layer in linear_layers(model)
        if not _is_excluded(layer, settings) and layer.data not in layer.node.outputs
    ]
    feeds = calibration.first(calibration.sequential_samples)
    subsample = _subsample(calibration, layers, feeds)
    run = SampleRun(feeds, settings.seed, calibration.run, subsample)
    return refit_in_order(model, layers, run, removal, values)


def _subsample(
    calibration: Calibration, layers: Sequence[LinearLayer], feeds: Sequence[Feed]
) -> Callable[[LinearLayer], Subsampling]:
    """Return which columns of each layer are used: what fits into memory, and fewer of synthetic samples."""
    limits = column_limits(layers, calibration.memory, SEQUENTIAL_MATRIX_COPIES)
    samples = sum(feed_size(feed, batched=is_batched(calibration.model)) for feed in feeds)
    return lambda layer: subsampling(layer, samples, limits.get(layer.key), dense=not calibration.synthetic)


def _is_excluded(layer: LinearLayer, settings: Settings) -> bool:
    """Return whether a pattern of `exclude` matches the layer's node, weight or outputs."""
    return any(
        pattern.search(name)
        for pattern in settings.patterns()
        for name in (layer.node.name, layer.weight, *layer.node.outputs)
    )


def not_refitted_weights(calibration: Calibration, removal: Removal, values: Mapping[str, Array]) -> Iterator[str]:
    """Yield a note about the layers that lost inputs and still have their old weights, if there are any."""
    pruned = [layer for layer in calibration.layers if layer.axis in removal]
    unchanged = sorted({layer.weight for layer in pruned if layer.weight not in values})
    if unchanged:
        names = ", ".join(unchanged[:MOST_NAMED_WEIGHTS]) + (", ..." if len(unchanged) > MOST_NAMED_WEIGHTS else "")
        yield (
            f"{len(unchanged)} of the {len({layer.weight for layer in pruned})} weights that lost inputs were not "
            "refitted, because others read them, their inputs were not finite, or what fits best is out of their "
            f"type's range: {names}"
        )
