"""Accuracy kept where the groups of a convolution lose different channels, at equal multiply-accumulates.

The networks are trained here.

    python benchmarks/group_convolutions.py [--seeds 5] [--epochs 12] [--nets NAME ...]

Small networks in the manner of ResNeXt and RegNet are trained on scikit-learn's digits, and pruned to a share of their
multiply-accumulates in three ways: each group of a convolution loses its own least important channels, all groups lose
the same channel, or whole groups go. 400 digits are held out; what is left is refitted, by `--repair obs`, on 256 of
those trained on. Needs torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
from shared import machine
from torch import Tensor, nn

import spa_onnx
from spa_onnx.analysis import channels, parts
from spa_onnx.execution.session import open_session
from spa_onnx.model.facts import Choice, Coupling, Option
from spa_onnx.model.folding import Array
from spa_onnx.model.node import Node
from spa_onnx.operators import conv

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import digits

CALIBRATION = 256
KEPT = (0.5, 0.35)
CRITERIA = ("l1", "obspa")


class Block(nn.Module):
    """1x1, 3x3 in groups, 1x1 and a shortcut; squeeze: channels of a gate behind the middle one, 0 for none."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, squeeze: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        middle = nn.Conv2d(outputs, outputs, 3, stride, padding=1, groups=groups, bias=False)
        self.grouped = nn.Sequential(middle, nn.BatchNorm2d(outputs), nn.ReLU())
        self.gate: nn.Module | None = None
        if squeeze:
            inner = nn.Conv2d(outputs, squeeze, 1), nn.ReLU(), nn.Conv2d(squeeze, outputs, 1)
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *inner, nn.Sigmoid())
        self.wide = nn.Sequential(nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        same = stride == 1 and inputs == outputs
        across = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else nn.Sequential(*across)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = self.grouped(self.narrow(x))
        y = y if self.gate is None else y * self.gate(y)
        return torch.relu(self.wide(y) + self.shortcut(x))


def network(stem: int, blocks: tuple[tuple[int, int, int], ...], *, squeeze: bool) -> nn.Module:
    """blocks: (channels, groups, stride) of each."""
    parts: list[nn.Module] = [nn.Conv2d(1, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
    for width, groups, stride in blocks:
        parts.append(Block(stem, width, groups, stride, width // 4 if squeeze else 0))
        stem = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(stem, digits.CLASS_COUNT))


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNeXt, 4 groups": lambda: network(32, ((64, 4, 1), (64, 4, 1), (96, 4, 2), (96, 4, 1)), squeeze=False),
    "ResNeXt, 16 groups": lambda: network(32, ((64, 16, 1), (64, 16, 1), (128, 16, 2), (128, 16, 1)), squeeze=False),
    "RegNet, groups of 16": lambda: network(24, ((48, 3, 1), (48, 3, 1), (96, 6, 2), (96, 6, 1)), squeeze=True),
    "RegNet, groups of 8": lambda: network(24, ((64, 8, 1), (64, 8, 1), (128, 16, 2), (128, 16, 1)), squeeze=True),
}


@dataclass(frozen=True)
class Form:
    """What the groups of a convolution lose. whole: groups as such; free: else each its own channels."""

    whole: bool = False
    free: bool = False

    @contextmanager
    def holds(self) -> Iterator[None]:
        """Prune in this form."""

        def choice(node: Node, aligned: tuple[Coupling, ...], blocks: tuple[Coupling, ...], *_: int) -> Choice:
            options = Option("whole groups", blocks), Option("as many channels of each group", aligned)
            return Choice(node.name, options if self.whole else options[::-1])

        loosened = parts.loosened if self.free else lambda *_: None
        with mock.patch.object(conv, "_grouped", choice), mock.patch.object(channels, "loosened", loosened):
            yield


FORMS = {"same channel of each group": Form(), "each group its own": Form(free=True), "whole groups": Form(whole=True)}


def trained(build: Callable[[], nn.Module], split: digits.DigitsSplit, seed: int, epochs: int) -> onnx.ModelProto:
    """The network as ONNX, after training."""
    digits.set_deterministic(seed, threads=1)
    model = build()
    with redirect_stdout(sys.stderr):
        digits.train(model, split, digits.TrainingSettings(epochs=epochs), digits.AugmentationSettings())
    file = io.BytesIO()
    names = {"input_names": ["x"], "output_names": ["logits"], "dynamic_axes": {"x": {0: "N"}, "logits": {0: "N"}}}
    torch.onnx.export(model, (split.held_out_images[:2],), file, opset_version=17, dynamo=False, **names)
    return onnx.load_from_string(file.getvalue())


def accuracy(proto: onnx.ModelProto, x: Array, y: Array) -> float:
    """Per cent of the images whose class comes first."""
    (logits,) = open_session(proto, optimise=True).run({"x": x})
    return 100 * float((logits.argmax(axis=1) == y).mean())


def measure(
    proto: onnx.ModelProto, split: digits.DigitsSplit, criterion: str, kept: float, form: Form
) -> tuple[float, float]:
    """(share of the multiply-accumulates that is kept, accuracy)."""
    data = {"x": split.train_images.numpy()[:CALIBRATION]}
    with form.holds():
        result = spa_onnx.prune(proto, target=f"macs={kept}", criterion=criterion, repair="obs", data=data, check=False)
    before, after = result.report.macs
    return after / before, accuracy(result.model, split.held_out_images.numpy(), split.held_out_labels.numpy())


def cell(pairs: Sequence[tuple[onnx.ModelProto, digits.DigitsSplit]], criterion: str, kept: float, form: Form) -> str:
    """Mean and deviation of the accuracies, and the share that is kept."""
    try:
        runs = [measure(proto, split, criterion, kept, form) for proto, split in pairs]
    except spa_onnx.RefusedError:  # whole groups may not get there
        return "out of reach"
    shares, found = zip(*runs, strict=True)
    return f"{np.mean(found):.1f} ± {np.std(found):.1f} ({np.mean(shares):.3f})"


def main() -> int:
    """Print a line per network, criterion and share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    given = parser.parse_args()
    print(f"Machine: {machine('torch')}\n\n| network | dense | criterion | MACs kept | {' | '.join(FORMS)} |")
    print(f"|{'---|' * (4 + len(FORMS))}", flush=True)
    for name in given.nets:
        splits = [digits.load_split(seed) for seed in range(given.seeds)]
        pairs = [(trained(NETS[name], split, seed, given.epochs), split) for seed, split in enumerate(splits)]
        dense = np.mean(
            [accuracy(proto, split.held_out_images.numpy(), split.held_out_labels.numpy()) for proto, split in pairs]
        )
        for criterion, kept in product(CRITERIA, KEPT):
            cells = [cell(pairs, criterion, kept, form) for form in FORMS.values()]
            print(f"| {name} | {dense:.1f} | {criterion} | {kept} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
