"""The same network has the same groups, whichever exporter wrote it and whichever simplifier went over it."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from command import MODELS, SHARED

from spa_onnx import prune
from spa_onnx.analysis import analyse
from spa_onnx.model.model import Model
from spa_onnx.pipeline import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spa_onnx.analysis.groups import Analysis

PAIRS = [
    ("cifar_resnet20_ts17", "cifar_resnet20_bn"),
    ("cifar_resnet20_ts17", "cifar_resnet20_dynamo18"),
    ("cifar_resnet56_ts17", "cifar_resnet56_bn"),
    ("stories260k_llama_ts17", "stories260k_llama_dynamo18"),
]
"""One network each, written by two exporters, with and without BatchNormalization."""

SHARED_MODELS = (
    "basic_pitch cifar_resnet20_bn fastestdet litemono_tiny_decoder lytnet_320x240 mbv2_pt2tfl_dq mlsd_tiny_512 "
    "nanodet_m_320 "
    "ppocr_v3_det stories260k_llama_dynamo18 stories260k_llama_ts17 ultraface_rfb320 yolov8n_deq_float yunet_n_dynamic"
).split()
"""Networks of many exporters of which simplifiers leave little as it was."""


def own(name: str) -> Path:
    return MODELS / f"{name}.onnx"


def shared(name: str) -> Path:
    path = SHARED / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def signature(analysis: Analysis) -> Counter[tuple[int, int]]:
    """(channels, elements of matrices and filters that they own) of every group that can lose channels.

    Names, layouts and vectors differ: a simplifier folds BatchNormalization away and merges the matrices of queries,
    keys and values.
    """
    model = analysis.model
    found: Counter[tuple[int, int]] = Counter()
    for group in analysis.prunable():
        shapes = [
            (np.count_nonzero(group.owner[a] >= 0), a.dim, model.shape(a.tensor) or ()) for a in group.weights(model)
        ]
        matrices = [(owned, dim, shape) for owned, dim, shape in shapes if sum(size > 1 for size in shape) > 1]
        found[group.size, sum(prod(shape) // shape[dim] * owned for owned, dim, shape in matrices)] += 1
    return found


def simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    return pytest.importorskip("onnxsim").simplify(proto)[0]


def slimmed(proto: onnx.ModelProto) -> onnx.ModelProto:
    return pytest.importorskip("onnxslim").slim(proto)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_exporters_of_one_network_give_the_same_groups(one, other):
    found = signature(inspect(shared(one)))
    assert found == signature(inspect(shared(other)))
    assert found.total() >= 10


@pytest.mark.parametrize("simplifier", [simplified, slimmed])
@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit"])
def test_a_simplifier_leaves_the_groups_of_our_models_as_they_are(
    name: str, simplifier: Callable[[onnx.ModelProto], onnx.ModelProto]
):
    proto = onnx.load(own(name))
    changed = simplifier(proto)
    assert len(changed.graph.node) < len(onnx.load(own(name)).graph.node), "it did nothing"
    assert signature(analyse(Model.of(changed))) == signature(inspect(own(name)))


@pytest.mark.slow
@pytest.mark.parametrize("simplifier", [simplified, slimmed])
@pytest.mark.parametrize("name", SHARED_MODELS)
def test_a_simplifier_leaves_the_groups_of_real_models_as_they_are(
    name: str, simplifier: Callable[[onnx.ModelProto], onnx.ModelProto]
):
    before = inspect(shared(name))
    assert signature(analyse(Model.of(simplifier(onnx.load(shared(name)))))) == signature(before)


def test_the_signature_tells_groups_apart():
    assert signature(inspect(own("digits_vit"))) != signature(inspect(own("digits_vit"), attention="width"))
    assert signature(inspect(own("digits_vit"))) == Counter({(4, 4 * 4 * 16 * 64): 4, (128, 2 * 128 * 64): 4})


# --- transformers lose heads and hidden channels in every layer, without --width ------------------------------------


def sizes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


@pytest.mark.parametrize("name", ["stories260k_llama_ts17", "stories260k_llama_dynamo18"])
def test_grouped_query_attention_loses_half_of_its_heads_and_hidden_channels_in_all_five_layers(name):
    """64 wide; 8 query heads of 8 share 4 key-value heads; 172 hidden channels: five layers of seven matrices."""
    path = shared(name)
    assert sorted(group.size for group in inspect(path).prunable()) == [4] * 5 + [172] * 5
    before, after = sizes(onnx.load(path)), sizes(prune(path, 0.5, criterion="l1", check=False).model)
    cuts = Counter(
        (before[tensor], after[tensor]) for tensor in before if before[tensor] != after.get(tensor, before[tensor])
    )
    assert cuts == {
        ((64, 64), (64, 32)): 5,  # queries
        ((64, 32), (64, 16)): 10,  # keys and values
        ((64, 64), (32, 64)): 5,  # what heads are put together with
        ((64, 172), (64, 86)): 10,  # gate and up
        ((172, 64), (86, 64)): 5,  # down
    }


def test_a_vision_transformer_loses_half_of_its_heads_and_hidden_channels_in_all_four_layers():
    """64 wide, 4 heads of 16, 128 hidden channels."""
    before, after = (
        sizes(onnx.load(own("digits_vit"))),
        sizes(prune(own("digits_vit"), 0.5, criterion="l1", check=False).model),
    )
    cuts = Counter(
        (before[tensor], after[tensor])
        for tensor in before
        if len(before[tensor]) > 1 and before[tensor] != after[tensor]
    )
    assert cuts == {
        ((64, 64), (64, 32)): 12,
        ((64, 64), (32, 64)): 4,
        ((64, 128), (64, 64)): 4,
        ((128, 64), (64, 64)): 4,
    }


def test_query_heads_go_with_their_key_value_head():
    """Channel k of a group owns key-value head k, 8 columns, and the two query heads that read it, 16 columns."""
    analysis = inspect(shared("stories260k_llama_ts17"))
    for group in (group for group in analysis.prunable() if group.size == 4):
        owned = Counter(np.count_nonzero(group.owner[axis] == 1) for axis in group.weights(analysis.model))
        assert owned == {16: 2, 8: 2}
