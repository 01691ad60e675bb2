"""Accuracy after pruning without any training, at equal multiply-accumulates.

Criteria, repair, synthetic and given samples, and other tools are compared.

    python benchmarks/accuracy.py [MODEL ...] [--method NAME ...] [--ratio R ...] [--curves FILE.svg]

Prints a markdown row for each model and MACs ratio (dense MACs / pruned MACs). Accuracies are top-1 in percent on data
that was not calibrated on; for a language model, nats per token (smaller is better). Random pruning is the mean of
three seeds. --curves also draws accuracy over the share of MACs kept. Needs the extra `benchmarks`, and the models and
data beside the project; "Torch-Pruning l1" also torch and torch-pruning.
"""

from __future__ import annotations

import argparse
import functools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from shared import MODELS, ROOT, machine

import spa_onnx
from spa_onnx.errors import SpaError
from spa_onnx.execution.session import open_session
from spa_onnx.model.model import Model, feeds
from spa_onnx.operators.macs import macs

DATA = MODELS.parent / "data"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
FEW, MANY = 256, 2048
SEEDS = 3

Array = NDArray[Any]


@dataclass(frozen=True)
class Task:
    """A model, its MACs ratios, and what it is measured with.

    given: samples to calibrate on. measured: samples and their classes. shift: of class numbers. tokens: whether
    samples are sentences.
    """

    path: Path
    ratios: tuple[float, ...]
    given: Callable[[], Array]
    measured: Callable[[], tuple[Array, Array]]
    shift: int = 0
    tokens: bool = False

    @functools.cached_property
    def proto(self) -> onnx.ModelProto:
        """The dense model."""
        return onnx.load(self.path)

    def measure(self, proto: onnx.ModelProto) -> float:
        """Top-1 accuracy in percent, or nats per token."""
        x, y = self.measured()
        session = open_session(proto, optimise=True)
        (entry,) = feeds(proto.graph)
        first = entry.type.tensor_type.shape.dim[0].dim_value or 64
        outputs = [session.run({entry.name: x[i : i + first]})[0] for i in range(0, len(x), first)]
        answers = np.concatenate(outputs)
        if self.tokens:
            return _nats(answers, x)
        return 100 * float(np.mean(answers.reshape(len(x), -1).argmax(axis=1) - self.shift == y))


def _nats(logits: Array, tokens: Array) -> float:
    """Mean negative log-likelihood of every token given those before."""
    scores = logits[:, :-1].astype(np.float64)
    top = scores.max(axis=-1, keepdims=True)
    total = top[..., 0] + np.log(np.exp(scores - top).sum(axis=-1))
    return float(np.mean(total - np.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]))


@functools.cache
def cifar(split: str) -> tuple[Array, Array]:
    """Pictures about the means of ImageNet, float32 (n, 3, 32, 32); their classes."""
    stored = np.load(DATA / f"cifar10_{split}.npz")
    return ((stored["x"] / np.float32(255) - MEAN) / STD).astype(np.float32), stored["y"]


@functools.cache
def _cifar_pixels(split: str) -> tuple[Array, Array]:
    """Pictures from 0 to 255, float32 (n, 32, 32, 3); their classes."""
    stored = np.load(DATA / f"cifar10_{split}.npz")
    return np.ascontiguousarray(stored["x"].transpose(0, 2, 3, 1), np.float32), stored["y"]


@functools.cache
def imagenet() -> tuple[Array, Array]:
    """All pictures, uint8 (n, 224, 224, 3), in an order that has nothing to do with their classes; the classes."""
    from PIL import Image  # noqa: PLC0415 - an extra

    with zipfile.ZipFile(DATA / "imagenet_500.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        order = np.random.default_rng(0).permutation(len(names))
        pictures = [np.asarray(Image.open(BytesIO(archive.read(names[i]))).convert("RGB")) for i in order]
    return np.stack(pictures), np.array([int(Path(names[i]).stem) for i in order])


def _half(part: int, prepare: Callable[[Array], Array]) -> tuple[Array, Array]:
    x, y = imagenet()
    half = slice(0, len(x) // 2) if part == 0 else slice(len(x) // 2, None)
    return prepare(x[half]), y[half]


def _from_minus_one(pixels: Array) -> Array:
    return np.asarray(pixels / np.float32(127.5) - 1, np.float32)


@functools.cache
def stories(split: str) -> Array:
    """Sentences of token ids, int64 (n, 192)."""
    return np.asarray(np.load(DATA / "stories_tokens.npz")[split])


@functools.cache
def digits(name: str) -> tuple[Array, Array]:
    """The held-out digits, and their classes."""
    stored = np.load(ROOT / "models" / f"{name}.npz")
    return stored["x"], stored["y"]


@functools.cache
def _digits_trained_on(name: str) -> Array:
    """The digits that a model was trained on, in an order that has nothing to do with their classes."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra

    held_out = {image.tobytes() for image in digits(name)[0]}
    images = (load_digits().images[:, np.newaxis] / 16).astype(np.float32)
    return np.stack(
        [images[i] for i in np.random.default_rng(0).permutation(len(images)) if images[i].tobytes() not in held_out]
    )


def _cifar_task(name: str, *ratios: float, load: Callable[[str], tuple[Array, Array]] = cifar) -> Task:
    return Task(MODELS / f"{name}.onnx", ratios, lambda: load("calib")[0], lambda: load("test"))


def _digits_task(name: str) -> Task:
    return Task(ROOT / "models" / f"{name}.onnx", (2.0,), lambda: _digits_trained_on(name), lambda: digits(name))


def _imagenet_task(name: str, prepare: Callable[[Array], Array], shift: int) -> Task:
    return Task(MODELS / f"{name}.onnx", (1.25,), lambda: _half(0, prepare)[0], lambda: _half(1, prepare), shift)


TASKS: Mapping[str, Task] = {
    "cifar_resnet20_bn": _cifar_task("cifar_resnet20_bn", 1.37, 2.0),
    "cifar_resnet56_bn": _cifar_task("cifar_resnet56_bn", 1.38, 2.0),
    "cifar_resnet56_ts17": _cifar_task("cifar_resnet56_ts17", 1.38, 2.0),
    "mlperf_resnet8_keras": _cifar_task("mlperf_resnet8_keras", 1.4, load=_cifar_pixels),
    "mlperf_resnet_large_tfl": _cifar_task("mlperf_resnet_large_tfl", 1.4, load=_cifar_pixels),
    "mbv1_025_224_keras": _imagenet_task("mbv1_025_224_keras", _from_minus_one, 0),
    "mbv2_100_224_tfl_dq": _imagenet_task("mbv2_100_224_tfl_dq", lambda pixels: pixels, 1),
    "stories260k_llama_ts17": Task(
        MODELS / "stories260k_llama_ts17.onnx",
        (1.23,),
        lambda: stories("calib"),
        lambda: (stories("eval"), stories("eval")),
        tokens=True,
    ),
    "digits_resnet": _digits_task("digits_resnet"),
    "digits_vit": _digits_task("digits_vit"),
}


def _ours(given: int = 0, *, seeds: int = 1, **options: object) -> Callable[[Task, float], list[onnx.ModelProto]]:
    """Pruned by spa-onnx to the MACs, once for each seed; given: calibration samples, None for synthetic ones."""

    def prune(task: Task, ratio: float) -> list[onnx.ModelProto]:
        samples: dict[str, Any] = {}
        if given:
            (entry,) = feeds(task.proto.graph)
            samples = {"data": {entry.name: task.given()[:given]}, "samples": given}
        settings: dict[str, Any] = {"target": f"macs={1 / ratio!r}", "check": False, **samples, **options}
        return [spa_onnx.prune(task.path, seed=seed, **settings).model for seed in range(seeds)]

    return prune


def _theirs(call: str, *, calibrated: bool = False) -> Callable[[Task, float], list[onnx.ModelProto]]:
    """Pruned by a function of onnxsim, with the sparsity that comes nearest to the MACs."""

    def prune(task: Task, ratio: float) -> list[onnx.ModelProto]:
        import onnxsim  # noqa: PLC0415 - an extra

        more: dict[str, Any] = {}
        if calibrated:
            (entry,) = feeds(task.proto.graph)
            first = entry.type.tensor_type.shape.dim[0].dim_value or 32
            x = task.given()[:FEW]
            more = {"calibration_data": [{entry.name: x[i : i + first]} for i in range(0, len(x), first)]}
        whole, low, high = macs(Model.of(task.proto)), 0.0, 0.95
        for _ in range(7):
            middle = (low + high) / 2
            result = getattr(onnxsim, call)(task.proto, sparsity=middle, **more)
            low, high = (low, middle) if macs(Model.of(result)) <= whole / ratio else (middle, high)
        return [getattr(onnxsim, call)(task.proto, sparsity=high, **more)]

    return prune


def _live(task: Task, ratio: float) -> list[onnx.ModelProto]:
    """Pruned by Torch-Pruning, where the network is rebuilt as a live module."""
    from live import torch_pruned  # noqa: PLC0415 - needs torch

    return [torch_pruned(task.path.stem, task.proto, ratio)]


METHODS: Mapping[str, Callable[[Task, float], list[onnx.ModelProto]]] = {
    "random": _ours(seeds=SEEDS, criterion="random", scope="local", repair="none"),
    "l1": _ours(criterion="l1", scope="local", repair="none"),
    "l1 + repair, data-free": _ours(criterion="l1", scope="local", repair="obs"),
    "wanda": _ours(FEW, criterion="wanda", scope="local", repair="none"),
    "activation-variance": _ours(FEW, criterion="activation-variance", scope="local", repair="mean"),
    "obspa local, data-free": _ours(scope="local"),
    "obspa, data-free": _ours(seeds=SEEDS),
    f"obspa, {FEW}": _ours(FEW),
    f"obspa, {MANY}": _ours(MANY),
    "onnxsim structured": _theirs("apply_structured_pruning"),
    "onnxsim wanda": _theirs("apply_structured_wanda_pruning", calibrated=True),
    "Torch-Pruning l1": _live,
}
"""Name -> the models that it makes of a task's model at a MACs ratio, one for each seed."""


def cell(task: Task, method: str, ratio: float) -> tuple[str, float]:
    """(what stands in the table, the figure): with the MACs ratio where it is another than asked for."""
    try:
        models = METHODS[method](task, ratio)
    except (SpaError, KeyError, ImportError) as error:
        return f"- ({str(error.args[0]).splitlines()[0][:60]})", float("nan")
    figures = [task.measure(model) for model in models]
    figure = float(np.mean(figures))
    reached = macs(Model.of(task.proto)) / macs(Model.of(models[0]))
    digits = 3 if task.tokens else 1
    text = f"{figure:.{digits}f}" + (f" ± {np.std(figures):.{digits}f}" if len(figures) > 1 else "")
    return (text if abs(reached / ratio - 1) < 0.03 else f"{text} (at {reached:.2f})"), figure


def draw(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, path: Path) -> None:
    """Accuracy over the share of MACs kept, one line for each method."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - an extra

    plt.rcParams["svg.hashsalt"] = "spa-onnx"
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for method, points in curves.items():
        axes.plot([1 / ratio for ratio, _ in points], [value for _, value in points], marker="o", label=method)
    axes.set(xlabel="share of multiply-accumulates kept", ylabel="top-1 accuracy, %", title=title)
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], choices=[*TASKS, []], metavar="MODEL")
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--ratio", action="append", type=float)
    parser.add_argument("--curves", type=Path)
    given = parser.parse_args()
    methods = given.method or list(METHODS)
    print(f"Machine: {machine('onnxsim')}\n")
    print(f"| model | MACs ratio | dense | {' | '.join(methods)} |")
    print("|---" * (len(methods) + 3) + "|")
    curves: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    for name in given.models or TASKS:
        task = TASKS[name]
        dense = task.measure(task.proto)
        for ratio in given.ratio or task.ratios:
            cells = [cell(task, method, ratio) for method in methods]
            print(
                f"| {name} | {ratio:g} | {dense:.{3 if task.tokens else 1}f} | "
                f"{' | '.join(text for text, _ in cells)} |",
                flush=True,
            )
            for method, (_, figure) in zip(methods, cells, strict=True):
                curves[method].append((ratio, figure))
        if given.curves:
            draw(curves, name, given.curves)


if __name__ == "__main__":
    main()
