"""Where the models to measure on lie, and what machine this is. Both are outside the package."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np

import spa_onnx
from spa_onnx.execution.float64 import Float64
from spa_onnx.execution.session import open_session
from spa_onnx.pipeline import inspect
from spa_onnx.plan.mask import mask
from spa_onnx.plan.removal import Removal
from spa_onnx.synthetic.working import working_inputs
from spa_onnx.validation.masked import difference

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path(os.environ.get("SHARED_MODELS", ROOT / ".." / "shared" / "models")).resolve()
VERIFY = MODELS.parent / "tools" / "verify_pruned.py"

CONVOLUTIONAL = (
    "cifar_resnet20_bn cifar_resnet56_bn cifar_resnet20_ts17 cifar_resnet20_dynamo18 cifar_resnet56_ts17 "
    "mbv1_025_224_keras mbv2_100_224_tfl_dq mbv2_pt2tfl_dq mlperf_resnet8_keras mlperf_resnet_large_tfl "
    "mlperf_ad01_keras mlperf_vww_keras "
    "mlperf_strww_keras deeplabv3_mnv2_tf2onnx ultraface_rfb320 fastestdet nanodet_m_320 espcn_subpixel_float "
    "espcn_nnresize_float unet_sedgen yolov8n_deq_float yunet_n_dynamic oww_embedding agllnet_256 mlsd_tiny_512 "
    "movenet_lightning_tfl_dq yolo_fastestv2 litemono_tiny_decoder ppocr_v2_cls ppocr_v3_det road_seg_adas"
).split()
"""Real pretrained convolutional networks from many exporters."""

EXACT = [
    *CONVOLUTIONAL,
    *"basic_pitch lytnet_320x240 oww_hey_jarvis stories260k_llama_ts17 stories260k_llama_dynamo18".split(),
]
"""All real float models that run and have no recurrent operator; attention and branches are among them."""

RECURRENT_AND_QUANTISED = (
    "mbv2_100_224_tfl_qdq st_ssd_onnx_q yolov8n_int8 ppocr_en_v2_rec gtcrn_simple dtln_model_1 silero_vad_16k_op15"
).split()
"""Real models with recurrent operators, or with weights of 8 bits."""


def machine(*libraries: str) -> str:
    """One line: processor, cores, and the versions that matter, those of more libraries included."""
    names = ("onnx", "onnxruntime", "numpy", "scipy", "networkx", *libraries)
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def other_tool() -> dict[str, float]:
    """Parameters kept at 0.5 by the best other ONNX pruner, by model, from the index beside the models."""
    found = {}
    for line in (MODELS / "INDEX.md").read_text(encoding="utf-8").splitlines():
        match = re.match(r"\| (\w+) \|(?:[^|]*\|){5} *([0-9.]+)", line)
        if match:
            found[match.group(1)] = float(match.group(2))
    return found


def checker_options(name: str) -> list[str]:
    """What the index beside the models says that the outside checker needs to be told about a model's inputs."""
    for line in (MODELS / "INDEX.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| {name} |"):
            return re.findall(r"--(?:dim|set)|(?<=--dim )\w+=\d+|(?<=--set )\w+=\d+", line)
    return []


def in_double(path: Path, result: spa_onnx.Result) -> float:
    """Return the largest difference of the pruned and the masked model, relative to the largest output.

    Both are computed in float64.
    """
    settings = result.plan["settings"]
    analysis = inspect(path, width=settings["width"], attention=settings["attention"])
    drop = {group["name"]: np.asarray(group["removed"]) for group in result.plan["groups"]}
    masked = mask(analysis.model, Removal(analysis, drop))
    (feed,) = working_inputs(analysis.model, open_session(masked), {}).feeds(analysis.model, 1)
    want, got = (Float64().open(proto).run(feed) for proto in (masked, result.model))
    return max(
        difference(x, y) if x.dtype.kind == "f" else float((x != y).mean()) for x, y in zip(want, got, strict=True)
    )
