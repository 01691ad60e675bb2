"""The outside checker's line about a pruned model, kept beside the exports."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import VERIFY

import spa_onnx

OTHER_SIZES = {"batch": 3, "sequence": 7, "target": 5, "images": 4, "past": 6, "past + sequence": 13}
"""Sizes of symbolic dimensions for the checker.

They differ from those that the tool worked with, so that a size written into the graph is noticed.
"""


def checked(path: Path, result: spa_onnx.Result) -> str:
    """Return the outside checker's line.

    The line for the same pruned model and the same plan is stored beside the exports.
    """
    model, plan = result.model.SerializeToString(), json.dumps(result.plan)
    digest = hashlib.sha256(model + plan.encode() + VERIFY.read_bytes()).hexdigest()
    stored = path.parent / "checked" / f"{digest}.txt"
    if not stored.exists():
        with tempfile.TemporaryDirectory() as folder:
            pruned, kept = Path(folder) / "pruned.onnx", Path(folder) / "plan.json"
            pruned.write_bytes(model)
            kept.write_text(plan, encoding="utf-8")
            command = [sys.executable, str(VERIFY), str(path), str(pruned), str(kept), "--seeds", "2"]
            command += [f"--dim={name}={size}" for name, size in OTHER_SIZES.items()]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        stored.parent.mkdir(exist_ok=True)
        stored.write_text(
            done.stdout.strip() or (done.stderr.strip().splitlines() or ["no answer"])[-1], encoding="utf-8"
        )
    return stored.read_text(encoding="utf-8")
