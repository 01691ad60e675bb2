"""Prune one network twice, with float and with 8-bit weights and activations, and measure the accuracy of both.

    python benchmarks/quantised_accuracy.py [--ratio 0.115] [--calibration 200]

MobileNetV2 with 1,001 classes on raw pixels, as TensorFlow Lite had it, once with its weights dequantised and once as
QDQ. Criterion and repair are the defaults; the samples to calibrate on and those to measure on are a random split of
the same 500 images. Needs pillow.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from shared import MODELS, machine

import spa_onnx
from spa_onnx.execution.session import open_session
from spa_onnx.model.folding import Array

FORMS = ("mbv2_100_224_tfl_dq", "mbv2_100_224_tfl_qdq")


def images() -> tuple[Array, Array]:
    """(uint8 (n, 224, 224, 3), class of each), shuffled."""
    with zipfile.ZipFile(MODELS.parent / "data" / "imagenet_500.zip") as archive:
        names = sorted(archive.namelist())
        pixels = [
            np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((224, 224))) for name in names
        ]
    order = np.random.default_rng(0).permutation(len(names))
    return np.stack(pixels)[order], np.asarray([int(Path(name).stem) for name in names])[order]


def top_1(proto: onnx.ModelProto, x: Array, y: Array) -> float:
    """Share of the images, in per cent, whose class comes first; class 0 is the background."""
    session = open_session(proto, optimise=True)
    (name,) = session.inputs
    return 100 * float(
        np.mean([session.run({name: image[None]})[0].argmax() - 1 == label for image, label in zip(x, y, strict=True)])
    )


def main() -> int:
    """Print a line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.115)
    parser.add_argument("--calibration", type=int, default=200, help="images to calibrate on; the rest is measured on")
    given = parser.parse_args()
    x, y = images()
    seen, held_out = x[: given.calibration], (x[given.calibration :], y[given.calibration :])
    print(
        f"Machine: {machine()}\n\n| model | top-1 before | MACs kept | "
        f"parameters kept | top-1 after |\n|---|---|---|---|---|"
    )
    for name in FORMS:
        path = MODELS / f"{name}.onnx"
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "calibration.npz", x=seen)
            data = Path(folder) / "calibration.npz"
            result = spa_onnx.prune(path, given.ratio, data=data, samples=given.calibration, check=False)
        params, macs = (after / before for before, after in ((result.report.params), (result.report.macs)))
        dense = top_1(onnx.load(path), *held_out)
        print(
            f"| {name} | {dense:.1f} | {macs:.3f} | {params:.3f} | {top_1(result.model, *held_out):.1f} |", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
