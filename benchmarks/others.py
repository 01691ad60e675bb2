"""Other pruners on the same architectures: onnxsim on the same export, Torch-Pruning on the same live model."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
import signal
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
from architectures import Row

from spa_onnx.model.model import parameters

PATIENCE = 30
"""Seconds of processor time after which another tool is stopped."""

Finding = float | str
"""The share of the parameters that is kept, or why there is none."""


def alone(function: Callable[..., Finding], *arguments: Any) -> Finding:
    """Call a function in a process of its own, so that neither its crash nor its endless loop ends the table."""
    here, there = (context := multiprocessing.get_context("fork")).Pipe(duplex=False)
    child = context.Process(target=_report, args=(there, function, arguments))
    child.start()
    there.close()
    try:
        found: Finding = here.recv()
    except EOFError:
        child.join()
        return (
            f"not done after {PATIENCE} s"
            if child.exitcode == -signal.SIGXCPU
            else f"crashed with exit status {child.exitcode}"
        )
    child.join()
    return found


def _report(pipe: Any, function: Callable[..., Finding], arguments: Iterable[Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE + 5))
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        try:
            found = function(*arguments)
        except Exception as error:  # noqa: BLE001 - a library may raise anything
            found = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
    pipe.send(found)


def simplifier(path: Path) -> Finding:
    """onnxsim: `apply_structured_pruning`, then `apply_attention_head_pruning`, both at 0.5."""
    import onnxsim  # noqa: PLC0415 - an extra

    original = onnx.load(path)
    before = parameters(original)
    pruned = onnxsim.apply_structured_pruning(original, sparsity=0.5)
    pruned = onnxsim.apply_attention_head_pruning(pruned, sparsity=0.5)
    return parameters(pruned) / max(before, 1)


def torch_pruning(row: Row, prepare: Callable[[Any], None]) -> Finding:
    """Torch-Pruning: l1, half of each layer, the layers that write the outputs ignored.

    Returns a text where the result does not run.

    Fused projections (`qkv`) are declared as heads, and what their modules note about sizes is updated afterwards, as
    the library's own examples do. Where that fails, nothing is declared.
    """
    try:
        return _torch_pruning(row, prepare, declared=True)
    except Exception:  # noqa: BLE001 - a library may raise anything
        return _torch_pruning(row, prepare, declared=False)


def _torch_pruning(row: Row, prepare: Callable[[Any], None], *, declared: bool) -> Finding:
    import torch  # noqa: PLC0415 - an extra
    import torch_pruning  # noqa: PLC0415 - an extra

    torch.manual_seed(0)
    model, inputs, _ = row.build()
    model = model.eval()
    prepare(model)
    given = tuple(inputs.values())
    with torch.enable_grad():
        outputs = list(_tensors(model(*given)))
    heads = {module.qkv: module.num_heads for module in model.modules() if declared and _fused(module)}
    before = sum(weight.numel() for weight in model.parameters())
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        given if len(given) > 1 else given[0],
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=last_layers(model, outputs),
        num_heads=heads,
        output_transform=lambda found: sum(tensor.sum() for tensor in _tensors(found)),
    )
    pruner.step()
    for module in model.modules():
        if _fused(module) and module.qkv in pruner.num_heads:
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim
    after = sum(weight.numel() for weight in model.parameters())
    with torch.no_grad():
        shapes = [tensor.shape for tensor in _tensors(model(*given))]
    if shapes != [tensor.shape for tensor in outputs]:
        return "outputs have other shapes"
    return "nothing pruned" if after == before else after / before


def last_layers(model: Any, outputs: Iterable[Any]) -> list[Any]:
    """The layers with weights nearest to the outputs: those that no other such layer follows."""
    import torch  # noqa: PLC0415 - an extra

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)  # noqa: SLF001 - what all convolutions have in common
    owners = {id(module.weight): module for module in model.modules() if isinstance(module, kinds)}
    found, seen, ahead = [], set(), [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    while ahead:
        step = ahead.pop()
        if step in seen:
            continue
        seen.add(step)
        before = [other for other, _ in step.next_functions if other is not None]
        owned = [module for other in before if (module := _owner(other, owners)) is not None]
        found += owned
        ahead += [] if owned else before
    return found


def _owner(step: Any, owners: dict[int, Any]) -> Any:
    """The layer whose weight enters the graph of gradients here, as it is or transposed."""
    if hasattr(step, "variable"):
        return owners.get(id(step.variable))
    if type(step).__name__.startswith(("TBackward", "Transpose", "Permute")):
        return _owner(step.next_functions[0][0], owners)
    return None


def _fused(module: Any) -> bool:
    return (
        hasattr(module, "num_heads")
        and hasattr(getattr(module, "qkv", None), "out_features")
        and isinstance(module.num_heads, int)
    )


def _tensors(value: Any) -> Iterable[Any]:
    """All float tensors in nested lists, tuples and mappings."""
    import torch  # noqa: PLC0415 - an extra

    if isinstance(value, torch.Tensor):
        yield from [value] if value.is_floating_point() else []
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
