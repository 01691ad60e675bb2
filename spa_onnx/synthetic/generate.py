"""Calibration without data: synthetic samples, and BatchNormalization with batch statistics while they run.

A BatchNormalization stores the mean and variance that its output had on real data (its bias and scale). If it
normalises by the statistics of the synthetic batch instead of the stored ones, every layer behind it receives inputs
with the real moments, for any samples. This needs no data and no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa_onnx.errors import RefusedError
from spa_onnx.execution.session import Feed, feed_size
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, feeds, is_batched
from spa_onnx.model.node import Node
from spa_onnx.model.shapes import symbolic_dims
from spa_onnx.operators.reshaping import RESHAPE
from spa_onnx.synthetic.feeds import LARGEST_ID, random_feed
from spa_onnx.synthetic.images import between, pictures
from spa_onnx.synthetic.input_range import input_ranges
from spa_onnx.synthetic.subset import d_optimal_subset
from spa_onnx.synthetic.text import causal_language_model, generate_sentences
from spa_onnx.synthetic.tokens import token_values
from spa_onnx.synthetic.working import WorkingInputs

NOT_BETWEEN_LAYERS = {"BatchNormalization", "LpNormalization"}
"""Normalisations that do not set the inputs of inner layers: by stored statistics, or of embeddings."""

LONGEST_PICTURE = 8
"""The largest ratio of the sides of a picture."""

IR_WITHOUT_LISTED_CONSTANTS = 4
"""From this IR version on, initializers need not be listed as graph inputs."""


def has_stored_statistics(model: Model) -> bool:
    """Return whether the graph has a BatchNormalization; many exporters fold it into the convolution before it."""
    return any(node.op == "BatchNormalization" and not node.inside for node in model.nodes)


def normalises(model: Model) -> bool:
    """Return whether the graph normalises activations.

    The normalisation is one operator, or several that compute sqrt(ReduceMean(...) + epsilon).
    """
    return any(
        (node.op.endswith("Normalization") and node.op not in NOT_BETWEEN_LAYERS)
        or (node.op == "Sqrt" and any(_is_mean(producer, model) for producer in _producers(node, model)))
        for node in model.nodes
    )


def _producers(node: Node, model: Model) -> list[Node]:
    """Return the nodes that compute the inputs of a node."""
    return [model.producer[name] for name in node.inputs if name in model.producer]


def _is_mean(node: Node, model: Model) -> bool:
    """Return whether a node is a mean, to which a constant may have been added."""
    return node.op == "ReduceMean" or (
        node.op == "Add" and any(producer.op == "ReduceMean" for producer in _producers(node, model))
    )


@dataclass(frozen=True, slots=True)
class SyntheticSamples:
    """Synthetic samples of a model.

    Args:
        feeds: The samples, in batches.
        uncertain: Whether no normalisation makes inner activations similar to real ones.
    """

    feeds: list[Feed]
    uncertain: bool


def input_bytes(model: Model) -> int:
    """Return the bytes of all inputs of one sample, as float32; at least 1."""
    return max(sum(4 * abs(prod(model.shape(name) or ())) // max(model.batch, 1) for name in model.inputs), 1)


def generate_samples(
    model: Model, inputs: WorkingInputs, samples: int, batch: int, seed: int, *, drawn: int = 0
) -> SyntheticSamples:
    """Generate samples: images as pictures, tokens as generated sentences or random ids of their table.

    If the graph stores the statistics of BatchNormalizations, they describe real inputs better than the pictures do.

    Args:
        model: The model.
        inputs: Inputs at which the model runs: their sizes, and how they are drawn.
        samples: The number of samples.
        batch: Samples per feed if the batch is free; 0 for the size in `inputs`.
        seed: The seed.
        drawn: The number of candidates. If it is larger than `samples`, a D-optimal subset of them is used. Generated
            sentences are all used.
    """
    language_model = causal_language_model(model)
    if language_model is not None:
        try:
            longer = replace(inputs, dims=language_model.sentence_dims(inputs.dims))
            first_tokens = _draw_feeds(model, longer, samples, batch, seed)
            sentences = generate_sentences(model, language_model, first_tokens, seed)
        except RefusedError:  # the model does not run on sentences of that length
            sentences = None
        if sentences is not None:
            return SyntheticSamples(sentences, uncertain=False)
    candidates = _draw_feeds(model, inputs, max(samples, drawn), batch, seed)
    count = max(-(-samples // feed_size(candidates[0], batched=is_batched(model))), 1)
    is_normalised = has_stored_statistics(model) or normalises(model)
    return SyntheticSamples(
        d_optimal_subset(model, candidates, count, seed) if len(candidates) > count else candidates,
        uncertain=not is_normalised,
    )


def _draw_feeds(model: Model, working: WorkingInputs, samples: int, batch: int, seed: int) -> list[Feed]:
    """Draw at least `samples` samples, in feeds of the same size."""
    inputs = feeds(model.proto.graph)
    free = {name for name, counts, _ in symbolic_dims(inputs) if counts and batch}
    fixed = 0 if free else feed_size(random_feed(model, working.dims, 0, working.style), batched=is_batched(model))
    size = fixed or batch
    count = max(-(-samples // size), 1)
    held: dict[str, Array] = {}  # one array for all feeds, because large ones go back to the system when they are freed
    for index in range(count):
        dims = {**working.dims, **dict.fromkeys(free, size)}
        feed = random_feed(model, dims, seed * 7919 + index, working.style)
        rng = np.random.default_rng([seed, index])
        images = {name: _as_images(array, rng) for name, array in feed.items() if name not in working.style.constants}
        tokens = {
            name: token_values(model, name, array, rng)
            for name, array in feed.items()
            if array.dtype.kind == "i" and array.ndim == 2 and working.style.most == LARGEST_ID
        }
        feed |= images | tokens
        held = held or {name: np.empty((count, *array.shape), array.dtype) for name, array in feed.items()}
        for name, array in feed.items():
            held[name][index] = array
    drawn = [{name: arrays[index, ...] for name, arrays in held.items()} for index in range(count)]
    pictured = [
        name
        for name, array in drawn[0].items()
        if _has_positions(array)
        and not _is_strip(array)
        and array.dtype.kind == "f"
        and name not in working.style.constants
    ]
    ranges = input_ranges(model, pictured, drawn[0])
    for feed in drawn:
        for name, ends in ranges.items():
            feed[name][...] = between(feed[name], *ends)
    return drawn


def _has_positions(array: Array) -> bool:
    """Return whether an array has the axes of a batch of images, of floats or of bytes."""
    return array.ndim == 4 and (array.dtype.kind == "f" or (array.dtype.kind in "iu" and array.dtype.itemsize == 1))


def _is_strip(array: Array) -> bool:
    """Return whether an array with the axes of images is too elongated: a waveform, a spectrogram or a table."""
    height, width = array.shape[1:3] if _has_channels_last(array) else array.shape[2:]
    return bool(max(height, width) > LONGEST_PICTURE * min(height, width))


def _has_channels_last(array: Array) -> bool:
    """Return whether the last of four axes has the size of colours, and the second has not."""
    return array.shape[-1] in (1, 3, 4) and array.shape[1] > 4


def _as_images(array: Array, rng: np.random.Generator) -> Array:
    """Return pictures of variance one, or of pixels for bytes, if the array has the form of a batch of images.

    Strips stay as they are drawn, or get all values of bytes.
    """
    if not _has_positions(array):
        return array
    if _is_strip(array):
        ends = None if array.dtype.kind == "f" else np.iinfo(array.dtype)
        return array if ends is None else rng.integers(ends.min, ends.max, array.shape, array.dtype, endpoint=True)
    channels_last = _has_channels_last(array)
    count, channels, height, width = (array.shape[axis] for axis in ((0, 3, 1, 2) if channels_last else (0, 1, 2, 3)))
    images = pictures(count, (channels, height, width), rng, array.dtype)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1) if channels_last else images)


def with_batch_statistics(model: Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `proto` in which every BatchNormalization normalises by the batch.

    Tensors keep their names. The copy is used only to collect statistics.

    Args:
        model: The model.
        proto: The model itself, or one whose BatchNormalizations have outputs of the same rank.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        rank = len(model.shape(node.output[0]) or ()) if node.op_type == "BatchNormalization" else 0
        nodes += _batch_nodes(node, rank, copy) if rank > 1 else [node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _batch_nodes(node: onnx.NodeProto, rank: int, proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return nodes for y[:, c] = (x[:, c] - mean) / sqrt(var + eps) * scale[c] + bias[c].

    The moments are those of the batch, over all axes but the second. The nodes are an InstanceNormalization of a single
    image that holds the positions of all samples.
    """
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    name = f"{node.output[0]}__batch"
    permutation = [1, 0, *range(2, rank)]
    flat_shape, transposed_shape = f"{name}_flat_shape", f"{name}_shape"
    one_name = f"{name}_one"
    for constant, values in ((one_name, [1]), (f"{name}_rest", [-1])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), constant))
        if proto.ir_version < IR_WITHOUT_LISTED_CONSTANTS:
            proto.graph.input.append(helper.make_tensor_value_info(constant, onnx.TensorProto.INT64, [1]))
    x, scale, bias = node.input[:3]
    return [
        helper.make_node("Transpose", [x], [f"{name}_channels_first"], perm=permutation),
        helper.make_node("Shape", [f"{name}_channels_first"], [transposed_shape]),
        helper.make_node("Shape", [scale], [f"{name}_channels"]),
        helper.make_node("Concat", [one_name, f"{name}_channels", f"{name}_rest"], [flat_shape], axis=0),
        helper.make_node(RESHAPE, [f"{name}_channels_first", flat_shape], [f"{name}_flat"]),
        helper.make_node("InstanceNormalization", [f"{name}_flat", scale, bias], [f"{name}_normal"], epsilon=epsilon),
        helper.make_node(RESHAPE, [f"{name}_normal", transposed_shape], [f"{name}_shaped"]),
        helper.make_node("Transpose", [f"{name}_shaped"], [node.output[0]], perm=permutation),
    ]
