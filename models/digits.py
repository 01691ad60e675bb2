"""Data, training and export shared by the scripts that make the digits models.

The data are the 1797 greyscale 8x8 images of scikit-learn's ``load_digits``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from spa_onnx.execution.session import open_session

IMAGE_SIZE = 8
"""Height and width of an image, in pixels."""
CLASS_COUNT = 10
HELD_OUT_COUNT = 400
MAXIMUM_PIXEL = 16.0
"""Largest grey value in the source data; dividing by it maps pixels to [0, 1]."""
OPSET = 17
SEED = 0


@dataclass(frozen=True)
class DigitsSplit:
    """Training and held-out images [n, 1, 8, 8] in [0, 1], and labels [n] in 0..9."""

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of one training run."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_fraction: float = 0.05
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class AugmentationSettings:
    """Largest random change of each kind; every change is uniform but the noise."""

    shift_pixels: float = 1.0
    rotation_degrees: float = 12.0
    scale_fraction: float = 0.1
    noise_deviation: float = 0.03


@dataclass(frozen=True)
class ModelCard:
    """What a model file says about itself, and the accuracy it must reach."""

    name: str
    description: str
    minimum_accuracy: float
    maximum_bytes: int


def set_deterministic(seed: int = SEED, threads: int = 2) -> None:
    """Seed PyTorch and make its results repeatable on one machine."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)


def load_split(seed: int = SEED) -> DigitsSplit:
    """Load the digits and hold out 400 of them, stratified by class."""
    digits = load_digits()
    images = (digits.images / MAXIMUM_PIXEL).astype(np.float32)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    train_images, held_out_images, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=HELD_OUT_COUNT, random_state=seed, stratify=labels
    )
    return DigitsSplit(
        train_images=torch.from_numpy(train_images),
        train_labels=torch.from_numpy(train_labels),
        held_out_images=torch.from_numpy(held_out_images),
        held_out_labels=torch.from_numpy(held_out_labels),
    )


def random_affine(count: int, settings: AugmentationSettings) -> Tensor:
    """Draw random rotations, scalings and shifts as matrices [count, 2, 3]."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count) * 2 - 1) * limit

    angle = uniform(math.radians(settings.rotation_degrees))
    scale = 1 + uniform(settings.scale_fraction)
    # affine_grid measures in half image widths: one pixel is 2 / IMAGE_SIZE.
    shift_limit = settings.shift_pixels * 2 / IMAGE_SIZE
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    first_row = torch.stack([cosine, -sine, uniform(shift_limit)], dim=1)
    second_row = torch.stack([sine, cosine, uniform(shift_limit)], dim=1)
    return torch.stack([first_row, second_row], dim=1)


def augment(images: Tensor, settings: AugmentationSettings) -> Tensor:
    """Return images [n, 1, 8, 8] moved, turned, scaled and with noise, in [0, 1]."""
    matrices = random_affine(images.shape[0], settings)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    noise = torch.randn_like(moved) * settings.noise_deviation
    return (moved + noise).clamp(0.0, 1.0)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay matrices and kernels only, not biases or normalisation parameters."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def train_epoch(
    model: nn.Module,
    split: DigitsSplit,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    settings: TrainingSettings,
    augmentation: AugmentationSettings,
) -> float:
    """Go once over the training images and return the mean loss of the batches."""
    order = torch.randperm(split.train_images.shape[0])
    losses: list[float] = []
    for start in range(0, order.shape[0], settings.batch_size):
        index = order[start : start + settings.batch_size]
        logits = model(augment(split.train_images[index], augmentation))
        loss = functional.cross_entropy(logits, split.train_labels[index], label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def train(
    model: nn.Module,
    split: DigitsSplit,
    settings: TrainingSettings,
    augmentation: AugmentationSettings,
) -> None:
    """Train with AdamW and a cosine schedule with warm-up; leave eval mode on."""
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate)
    batches = math.ceil(split.train_images.shape[0] / settings.batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=settings.learning_rate,
        total_steps=settings.epochs * batches,
        pct_start=settings.warmup_fraction,
        cycle_momentum=False,
    )
    model.train()
    for epoch in range(1, settings.epochs + 1):
        loss = train_epoch(model, split, optimizer, scheduler, settings, augmentation)
        if epoch % 10 == 0 or epoch == settings.epochs:
            print(f"epoch {epoch}/{settings.epochs}: training loss {loss:.4f}")
    model.eval()


def write_held_out(split: DigitsSplit, path: Path) -> None:
    """Write ``x`` float32 [400, 1, 8, 8] in [0, 1] and ``y`` int64 [400] in 0..9."""
    np.savez_compressed(path, x=split.held_out_images.numpy(), y=split.held_out_labels.numpy())


def readable_weight_names(model: onnx.ModelProto) -> None:
    """Name folded weights (``onnx::MatMul_123``) after the module that uses them.

    The exporter transposes the weight of a linear layer and drops its name; the
    node is still called ``/blocks/blocks.0/mlp/expand/MatMul``, which gives
    ``blocks.0.mlp.expand.weight``.
    """
    anonymous = {weight.name: weight for weight in model.graph.initializer if weight.name.startswith("onnx::")}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in anonymous:
                node.input[position] = f"{module_name(node.name)}.weight"
                anonymous[name].name = node.input[position]


def module_name(node_name: str) -> str:
    """Return the module a node came from: ``/a/a.0/mlp/MatMul`` gives ``a.0.mlp``."""
    scopes = node_name.strip("/").split("/")[:-1]
    # An nn.Sequential writes its own name twice: "a", then "a.0".
    kept = [
        scope
        for scope, following in zip(scopes, [*scopes[1:], ""], strict=True)
        if not following.startswith(f"{scope}.")
    ]
    return ".".join(kept)


def describe(model: onnx.ModelProto, card: ModelCard) -> None:
    """Write licence and description into the model and drop the nodes' doc strings."""
    model.doc_string = card.description
    model.graph.name = card.name
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.ClearField("doc_string")
    properties = {"license": "Apache-2.0", "description": card.description}
    onnx.helper.set_model_props(model, properties)


def export(network: nn.Module, path: Path, card: ModelCard) -> None:
    """Write the network as ONNX: ``image`` [batch, 1, 8, 8], ``logits`` [batch, 10].

    PRESERVE, unlike EVAL, keeps BatchNormalization apart from the convolutions;
    the exporter advises against folding constants together with it.
    """
    keep_norms = any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    mode = torch.onnx.TrainingMode
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),),
        str(path),
        dynamo=False,
        training=mode.PRESERVE if keep_norms else mode.EVAL,
        do_constant_folding=not keep_norms,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )
    model = onnx.load(path)
    readable_weight_names(model)
    describe(model, card)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def runtime_accuracy(model_path: Path, held_out_path: Path) -> float:
    """Return the fraction of the held-out images that ONNX Runtime gets right."""
    session = open_session(onnx.load(model_path))
    with np.load(held_out_path) as held_out:
        images, labels = held_out["x"], held_out["y"]
    (logits,) = session.run({"image": images}, ["logits"])
    return float((logits.argmax(axis=1) == labels).mean())


def check(model_path: Path, held_out_path: Path, card: ModelCard) -> float:
    """Return the held-out accuracy; raise if it or the file's size is off target."""
    accuracy = runtime_accuracy(model_path, held_out_path)
    if accuracy < card.minimum_accuracy:
        raise ValueError(f"{card.name}: held-out accuracy {accuracy:.4f}, below {card.minimum_accuracy}")
    size = model_path.stat().st_size
    if size > card.maximum_bytes:
        raise ValueError(f"{card.name}: {size} bytes, more than {card.maximum_bytes}")
    return accuracy


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in parameters)


def make(
    network: nn.Module,
    card: ModelCard,
    settings: TrainingSettings,
    augmentation: AugmentationSettings,
    folder: Path,
) -> Path:
    """Train, export and check one network; return the path of its ONNX file."""
    split = load_split()
    model_path = folder / f"{card.name}.onnx"
    held_out_path = folder / f"{card.name}.npz"
    train(network, split, settings, augmentation)
    write_held_out(split, held_out_path)
    export(network, model_path, card)
    accuracy = check(model_path, held_out_path, card)
    print(
        f"{model_path.name}: {count_parameters(network.parameters())} parameters, "
        f"{model_path.stat().st_size} bytes, held-out accuracy {accuracy:.4f}"
    )
    return model_path
