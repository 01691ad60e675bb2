"""Exports of architectures with random weights, kept beside what was measured on them."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
from architectures import Row

from spa_onnx.execution.session import open_session

ENOUGH = 0.6
"""Share of the parameters from which on `--width` is tried too."""


NEAR = 0.02
"""By so much may the share kept exceed Torch-Pruning's; `--width` is tried where it does."""


OPSET = {"torchscript": 17, "dynamo": 20}


def jitter(model: Any) -> None:
    """Make every parameter and running statistic different from zero, from one, and from its neighbours, in place."""
    import torch  # noqa: PLC0415 - an extra

    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            running = name.endswith(("running_mean", "running_var"))
            if (
                not tensor.is_floating_point()
                or not tensor.numel()
                or (not running and not isinstance(tensor, torch.nn.Parameter))
            ):
                continue
            spread, level = (tensor.std().item() if tensor.numel() > 1 else 0.0), tensor.abs().mean().item()
            if spread > 1e-3 * max(level, 1e-6):
                fair = max(spread, prod(tensor.shape[1:]) ** -0.5 if tensor.ndim > 1 else 0.1)
                tensor.mul_(fair / spread).add_(torch.randn_like(tensor) * fair * 0.1)
            elif level < 1e-7:
                tensor.copy_(torch.randn_like(tensor) * 0.1)
            else:
                tensor.copy_((0.5 + torch.rand_like(tensor)) * max(level, 0.1))


def settle(model: Any, inputs: Sequence[Any]) -> None:
    """Give every BatchNorm statistics near those of its inputs, in place.

    Otherwise deep networks amplify rounding beyond all measure.
    """
    import torch  # noqa: PLC0415 - an extra

    def measure(module: Any, given: Sequence[Any]) -> None:
        x, around = given[0], [dim for dim in range(given[0].ndim) if dim != 1]
        variance = x.var(around, unbiased=False).clamp(min=1e-3)
        module.running_mean.copy_(x.mean(around) + 0.1 * variance.sqrt() * torch.randn_like(module.running_mean))
        module.running_var.copy_(variance * (0.8 + 0.4 * torch.rand_like(module.running_var)))

    counting = [module for module in model.modules() if getattr(module, "running_var", None) is not None]
    hooks = [module.register_forward_pre_hook(measure) for module in counting]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()


def export(row: Row, exporter: str, path: Path) -> None:
    """Write the row's model to a path; raises whatever torch raises."""
    import torch  # noqa: PLC0415 - an extra

    torch.manual_seed(0)
    model, inputs, dynamic = row.build()
    model = model.eval()
    jitter(model)
    torch.set_num_threads(1)
    settle(model, [*inputs.values()])
    with torch.no_grad():
        common: dict[str, Any] = {"input_names": list(inputs), "opset_version": OPSET[exporter]}
        if exporter == "torchscript":
            torch.onnx.export(model, tuple(inputs.values()), str(path), dynamo=False, dynamic_axes=dynamic, **common)
        else:
            torch.onnx.export(
                model, tuple(inputs.values()), str(path), dynamo=True, external_data=False, verbose=False, **common
            )
    opened = open_session(onnx.load(path))  # an export that does not run is none
    opened.run({name: inputs[name].numpy() for name in opened.inputs})


def exported(row: Row, exporter: str, cache: Path, *, anew: bool = True) -> Path | str:
    """The export in the cache, made (anew) if it is not there; a text says why there is none."""
    path = cache / f"{row.name.replace('/', '_')}.{exporter}.onnx"
    note = path.with_suffix(".skipped")
    if note.exists():
        return note.read_text(encoding="utf-8")
    if not path.exists() and not anew:
        return ""
    if not path.exists():
        first_tokens = path.with_suffix(".part")
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                export(row, exporter, first_tokens)
            first_tokens.rename(path)
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything
            text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
            if not isinstance(error, ImportError):
                note.write_text(text, encoding="utf-8")
            return text
    return path


def remembered(note: Path, find: Callable[[], Any], *, again: bool = False) -> Any:
    """Return what is known about an export: read from the JSON beside it, or measured if absent or asked for again."""
    if again or not note.exists():
        note.write_text(json.dumps(find()), encoding="utf-8")
    return json.loads(note.read_text(encoding="utf-8"))
