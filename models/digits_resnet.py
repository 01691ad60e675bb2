"""Make ``digits_resnet.onnx``: a small residual network for 8x8 digits.

It holds what structural pruning meets in residual networks: shortcuts with and
without a convolution, a depthwise and a grouped convolution, and
BatchNormalization left as nodes of its own.
"""

from __future__ import annotations

from pathlib import Path

import digits
import onnx
from torch import Tensor, nn

CARD = digits.ModelCard(
    name="digits_resnet",
    description="Small residual network that classifies 8x8 handwritten digits.",
    minimum_accuracy=0.98,
    maximum_bytes=500_000,
)


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map [n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        normalised: Tensor = self.norm(self.conv(features))
        return normalised


class ResidualBlock(nn.Module):
    """Branch plus shortcut, then ReLU.

    The shortcut is the identity, or a 1x1 convolution where the shapes differ.
    """

    def __init__(self, branch: nn.Module, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map [n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        total: Tensor = self.relu(self.branch(features) + self.shortcut(features))
        return total


def basic_block(inputs: int, outputs: int, stride: int = 1) -> ResidualBlock:
    """Two 3x3 convolutions."""
    branch = nn.Sequential()
    branch.add_module("first", ConvNorm(inputs, outputs, 3, stride))
    branch.add_module("relu", nn.ReLU())
    branch.add_module("second", ConvNorm(outputs, outputs, 3))
    return ResidualBlock(branch, inputs, outputs, stride)


def depthwise_block(channels: int) -> ResidualBlock:
    """A depthwise 3x3 convolution and a pointwise one."""
    branch = nn.Sequential()
    branch.add_module("depthwise", ConvNorm(channels, channels, 3, groups=channels))
    branch.add_module("relu", nn.ReLU())
    branch.add_module("pointwise", ConvNorm(channels, channels, 1))
    return ResidualBlock(branch, channels, channels)


def grouped_block(inputs: int, outputs: int, stride: int, groups: int = 4) -> ResidualBlock:
    """1x1, grouped 3x3 and 1x1 convolutions, as in ResNeXt."""
    branch = nn.Sequential()
    branch.add_module("reduce", ConvNorm(inputs, outputs, 1))
    branch.add_module("reduce_relu", nn.ReLU())
    branch.add_module("grouped", ConvNorm(outputs, outputs, 3, stride, groups))
    branch.add_module("grouped_relu", nn.ReLU())
    branch.add_module("expand", ConvNorm(outputs, outputs, 1))
    return ResidualBlock(branch, inputs, outputs, stride)


class DigitsResNet(nn.Module):
    """Stem, four residual blocks, global average pooling and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 32, 3)
        self.stem_relu = nn.ReLU()
        self.block1 = basic_block(32, 32)
        self.block2 = basic_block(32, 48, stride=2)
        self.block3 = depthwise_block(48)
        self.block4 = grouped_block(48, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(64, digits.CLASS_COUNT)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [n, 1, 8, 8] to logits [n, 10]."""
        features = self.stem_relu(self.stem(image))
        features = self.block4(self.block3(self.block2(self.block1(features))))
        logits: Tensor = self.classifier(self.flatten(self.pool(features)))
        return logits


def check_batch_normalization(model_path: Path, expected: int) -> None:
    """Raise unless all BatchNormalization nodes are left, in inference form."""
    graph = onnx.load(model_path).graph
    nodes = [node for node in graph.node if node.op_type == "BatchNormalization"]
    if len(nodes) != expected:
        raise ValueError(f"{len(nodes)} BatchNormalization nodes, {expected} expected")
    for node in nodes:
        modes = [a.i for a in node.attribute if a.name == "training_mode"]
        if len(node.output) != 1 or any(modes):
            raise ValueError(f"{node.name} is in training form: {node.output}, {modes}")


def main() -> None:
    """Train, export and check the model, next to this script."""
    digits.set_deterministic()
    network = DigitsResNet()
    model_path = digits.make(
        network,
        CARD,
        digits.TrainingSettings(epochs=60, learning_rate=5e-3),
        digits.AugmentationSettings(),
        Path(__file__).parent,
    )
    norms = [norm for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    check_batch_normalization(model_path, len(norms))


if __name__ == "__main__":
    main()
