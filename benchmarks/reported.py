"""Reported against true quality: what `prune` says of its result, and what `compare` says on samples kept from it.

    python benchmarks/reported.py [ROW ...]

Needs the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
import onnx
from numpy.typing import NDArray
from shared import MODELS, ROOT, machine

import spa_onnx
from spa_onnx.validation.compare import compare
from spa_onnx.validation.drift import Drift

Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """A model, the samples that `prune` is given (None for none), those kept from it, and how it is pruned."""

    path: Path
    given: Callable[[], Array | None]
    kept: Callable[[], Array]
    settings: Mapping[str, Any] = field(default_factory=lambda: {"target": "macs=0.5"})


def _pictures(part: slice) -> Callable[[], Array]:
    """Return a function that returns some of the ImageNet pictures, uint8."""
    return lambda: accuracy.imagenet()[0][part]


def _cifar(split: str, count: int | None = None) -> Callable[[], Array]:
    """Return a function that returns the first pictures of CIFAR-10."""
    return lambda: accuracy.cifar(split)[0][:count]


def _stories(part: slice) -> Callable[[], Array]:
    """Return a function that returns some of the sentences."""
    return lambda: accuracy.stories("eval")[part]


MBV2, RESNET = MODELS / "mbv2_100_224_tfl_dq.onnx", MODELS / "cifar_resnet20_bn.onnx"
LLAMA, DIGITS = MODELS / "stories260k_llama_ts17.onnx", ROOT / "models" / "digits_resnet.onnx"
ROWS: Mapping[str, Row] = {
    "mbv2, 200 pictures": Row(MBV2, _pictures(slice(200)), _pictures(slice(200, None))),
    "mbv2, no data": Row(MBV2, lambda: None, _pictures(slice(200, None))),
    "resnet20, 64 pictures": Row(RESNET, _cifar("calib", 64), _cifar("test")),
    "resnet20, 2048 pictures": Row(RESNET, _cifar("calib"), _cifar("test")),
    "resnet20, no data": Row(RESNET, lambda: None, _cifar("test")),
    "stories260k, 20 sentences": Row(LLAMA, _stories(slice(20)), _stories(slice(20, None)), {"ratio": 0.3}),
    "digits_resnet, 1 digit": Row(
        DIGITS,
        lambda: accuracy.digits("digits_resnet")[0][:1],
        lambda: accuracy.digits("digits_resnet")[0][1:],
        {"ratio": 0.4},
    ),
}


def _percent(drift: Drift | None) -> str:
    """Return the agreement of a drift, and whether it says that the result has collapsed."""
    if drift is None or drift.agreement is None:
        return "unknown"
    return f"{100 * drift.agreement:.1f}{', collapsed' if drift.collapsed else ''}"


def cells(row: Row) -> tuple[str, str, str, str]:
    """Return what was measured on, the reported agreement, the printed one, and the true one."""
    name = onnx.load(row.path).graph.input[0].name
    given = row.given()
    result = spa_onnx.prune(row.path, data=None if given is None else {name: given}, **row.settings)
    drift = result.report.drift
    with tempfile.TemporaryDirectory() as folder:
        pruned = Path(folder) / "pruned.onnx"
        onnx.save(result.model, pruned)
        true = compare(row.path, pruned, data={name: row.kept()}).drift
    samples = "-" if drift is None else f"{drift.samples} {drift.measured_on}"
    printed = _percent(drift) if drift is not None and given is not None else "unknown"
    return samples, _percent(drift), printed, f"{_percent(true)} (on {true.samples})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="beginnings of rows")
    chosen = parser.parse_args().rows
    np.seterr(all="ignore")
    print(f"Machine: {machine()}\n")
    print("| model and data | measured on | agreement, % | what is printed, % | true, % |\n|---|---|---|---|---|")
    for name, row in ROWS.items():
        if not chosen or any(name.startswith(start) for start in chosen):
            print(f"| {name} | {' | '.join(cells(row))} |", flush=True)


if __name__ == "__main__":
    main()
