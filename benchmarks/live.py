"""Networks of `accuracy.py` as live PyTorch modules with the weights of their ONNX files, for Torch-Pruning.

Torch-Pruning has no way to read an ONNX file, so those networks are written down here whose weights can be put into
their place by name or in the order of the graph. Needs torch and torch-pruning.
"""

from __future__ import annotations

import copy
import io
import sys
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import onnx
import torch
import torch_pruning
from onnx import numpy_helper
from shared import ROOT
from torch import Tensor, nn

from spa_onnx.model.model import Model
from spa_onnx.operators.macs import macs

STEPS = 7
"""Halvings of the interval in which the ratio is looked for that comes nearest to the multiply-accumulates."""


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    The shortcut takes every second position and pads channels with zeros (He et al. 2016, option A).
    """

    def __init__(self, inputs: int, outputs: int, *, folded: bool) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.missing = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=folded)
        self.bn1 = nn.Identity() if folded else nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=folded)
        self.bn2 = nn.Identity() if folded else nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing, self.missing))
        return torch.relu(x + y)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels.

    The convolutions have biases where BatchNormalization is folded into them.
    """

    def __init__(self, blocks: int, *, folded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=folded)
        self.bn1 = nn.Identity() if folded else nn.BatchNorm2d(16)
        widths = [16, *[16] * blocks, *[32] * blocks, *[64] * blocks]
        made = [Block(a, b, folded=folded) for a, b in pairwise(widths)]
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*made[i * blocks : (i + 1) * blocks]) for i in range(3))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [n, 3, 32, 32] to logits [n, 10]."""
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _named(proto: onnx.ModelProto, network: nn.Module) -> nn.Module:
    """The network with the constants that have the names of its parameters."""
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer}
    stored |= {
        node.output[0]: stored[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "Identity" and node.input[0] in stored
    }
    network.load_state_dict({name: stored.get(name, value) for name, value in network.state_dict().items()})
    return network


def _ordered(proto: onnx.ModelProto, network: CifarResNet) -> nn.Module:
    """The network with the constants of the convolutions, and of the Gemm, in the order of the graph."""
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer}
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    nodes = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    for layer, node in zip(layers, nodes, strict=True):
        layer.load_state_dict({"weight": stored[node.input[1]], "bias": stored[node.input[2]]})
    return network


def _digits_resnet(proto: onnx.ModelProto) -> nn.Module:
    sys.path.append(str(ROOT / "models"))
    from digits_resnet import DigitsResNet  # noqa: PLC0415 - beside the models

    return _named(proto, DigitsResNet())


NETWORKS: Mapping[str, Callable[[onnx.ModelProto], nn.Module]] = {
    "cifar_resnet20_bn": lambda proto: _named(proto, CifarResNet(3, folded=False)),
    "cifar_resnet56_bn": lambda proto: _named(proto, CifarResNet(9, folded=False)),
    "cifar_resnet56_ts17": lambda proto: _ordered(proto, CifarResNet(9, folded=True)),
    "digits_resnet": _digits_resnet,
}
"""Name of a model -> how it is rebuilt."""


def exported(network: nn.Module, example: Tensor) -> onnx.ModelProto:
    """The network as ONNX, its batch free."""
    stream = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "N"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (example,), stream, dynamo=False, **names)
    return onnx.load_from_string(stream.getvalue())


def _stream(network: nn.Module) -> list[nn.Module]:
    """Return the layers that write to the residual stream of a CifarResNet.

    Torch-Pruning 1.6 fails on the zeros that its shortcuts pad.
    """
    return [network.conv1, *(block.conv2 for block in network.modules() if isinstance(block, Block))]


def _pruned(network: nn.Module, example: Tensor, ratio: float) -> onnx.ModelProto:
    """Torch-Pruning with l1 norms, the same share of every group, the classifier ignored."""
    thinner = copy.deepcopy(network).eval()
    last = [module for module in thinner.modules() if isinstance(module, nn.Linear)][-1]
    pruner = torch_pruning.pruner.MagnitudePruner(
        thinner,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=[last, *(_stream(thinner) if isinstance(thinner, CifarResNet) else ())],
    )
    pruner.step()
    return exported(thinner, example)


def torch_pruned(name: str, proto: onnx.ModelProto, ratio: float) -> onnx.ModelProto:
    """Return a network pruned to about 1 / ratio of its multiply-accumulates.

    Raises KeyError for a network that is not rebuilt here.
    """
    if name not in NETWORKS:
        raise KeyError("not rebuilt")
    network = NETWORKS[name](proto).eval()
    sizes = [dim.dim_value or 1 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    example = torch.zeros(1, *sizes[1:])
    whole, low, high = macs(Model.of(exported(network, example))), 0.0, 0.95
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if macs(Model.of(_pruned(network, example, middle))) <= whole / ratio else (middle, high)
        )
    return _pruned(network, example, high)
