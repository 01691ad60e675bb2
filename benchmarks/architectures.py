"""The rows of the reach table: how each architecture is made small, and what it is fed.

Those of timm and torchvision are listed in text files beside this one. torch and its friends are imported when needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from architectures_transformers import TRANSFORMERS
from configurations import PARTS

Built = tuple[Any, dict[str, Any], dict[str, dict[int, str]]]
"""A module, its inputs by name, and the symbolic dimensions of each."""

QUICK = ("timm/resnet10t", "timm/mobilenetv3_small_050", "timm/ghostnet_050", "transformers/gpt2", "transformers/llama")


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture. Settings are those of its family."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0

    def build(self) -> Built:
        """Return the module with its inputs.

        Raises:
            ImportError: Its library is missing. Whatever that library raises passes too.
        """
        _declare()
        family, model = self.name.split("/")
        if family == "transformers":
            return _transformers(model)
        return _timm(model, self) if family == "timm" else _torchvision(model, self)


@cache
def _declare() -> None:
    """Declare the operators without which torchvision cannot be imported, where its wheel is built for another torch.

    The wheels of the index are built for CUDA, so their library of operators does not load beside a torch for the CPU.
    Nothing in the table runs these operators, but torchvision (and so timm and transformers) registers shapes for them
    on import.
    """
    import torch  # noqa: PLC0415 - an extra

    try:
        import torchvision  # noqa: F401, PLC0415 - an extra
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pass


def _timm(name: str, row: Row) -> Built:
    import timm  # noqa: PLC0415 - an extra
    import torch  # noqa: PLC0415 - an extra

    model = timm.create_model(name, num_classes=10, exportable=True, **row.settings)
    image = torch.randn(2, model.pretrained_cfg.get("input_size", (3,))[0], row.size, row.size)
    return model, {"image": image}, {"image": {0: "batch"}}


def _torchvision(name: str, row: Row) -> Built:
    import torch  # noqa: PLC0415 - an extra
    import torchvision  # noqa: PLC0415 - an extra

    kind, image, batch = row.settings["kind"], torch.randn(2, 3, row.size, row.size), {0: "batch"}
    options: dict[str, Any] = {"weights": None} | ({} if kind == "optical_flow" else {"num_classes": 10})
    if kind in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    model = torchvision.models.get_model(name, **options)
    if kind == "segmentation":
        return _plain([model], lambda whole, x: whole(x)["out"]), {"image": image}, {"image": batch}
    if kind == "detection":
        parts = [model.backbone, model.rpn.head if hasattr(model, "rpn") else model.head]
        return _plain(parts, lambda body, head, x: head(list(body(x).values()))), {"image": image}, {"image": batch}
    if kind == "optical_flow":
        pair = {"first": image, "second": torch.randn_like(image)}
        return _plain([model], lambda whole, *x: whole(*x, num_flow_updates=2)[-1]), pair, dict.fromkeys(pair, batch)
    if kind == "video":
        return model, {"frames": torch.randn(2, 3, 16, row.size, row.size)}, {"frames": batch}
    return model, {"image": image}, {"image": batch}


def _plain(parts: Sequence[Any], forward: Callable[..., Any]) -> Any:
    """A module of parts whose forward is a plain function of them and the inputs."""
    import torch  # noqa: PLC0415 - an extra

    class Plain(torch.nn.Module):
        """Positional inputs in, tensors out."""

        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

        def forward(self, *given: Any) -> Any:
            return forward(*self.parts, *given)

    return Plain()


def _transformers(name: str) -> Built:
    import torch  # noqa: PLC0415 - an extra
    import transformers  # noqa: PLC0415 - an extra

    kind, config_class, model_class, settings = TRANSFORMERS[name]
    inner = {key: getattr(transformers, made)(**given) for key, (made, given) in PARTS.get(name, {}).items()}
    config = getattr(transformers, config_class)(**settings, **inner)
    model = getattr(transformers, model_class)(config)
    inputs, dynamic = _inputs(kind)
    if kind == "cached":
        layers, heads = config.num_hidden_layers, getattr(config, "num_key_value_heads", config.num_attention_heads)
        width = config.hidden_size // config.num_attention_heads
        for past in (f"past.{layer}.{part}" for layer in range(layers) for part in ("key", "value")):
            inputs[past], dynamic[past] = torch.randn(2, heads, 4, width), {0: "batch", 2: "past"}

    class First(torch.nn.Module):
        """The model with a plain signature and its first output alone; with a cache, the cache as well."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            options: dict[str, Any] = {}
            if kind in ("text", "seq2seq", "generator") and hasattr(config, "use_cache"):
                options = {"use_cache": False}
            if kind == "cached":
                pairs = list(zip(given[2::2], given[3::2], strict=True))
                options = {"use_cache": True, "past_key_values": transformers.DynamicCache(pairs)}
            named = {key: value for key, value in zip(inputs, given, strict=True) if not key.startswith("past.")}
            found = self.model(**named, **options, return_dict=True)
            first = next(value for value in found.values() if isinstance(value, torch.Tensor))
            present = found.past_key_values.layers if kind == "cached" else ()
            return (
                (first, *(tensor for layer in present for tensor in (layer.keys, layer.values)))
                if kind == "cached"
                else first
            )

    return First(), inputs, dynamic


def _inputs(kind: str) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    import torch  # noqa: PLC0415 - an extra

    ids, text = torch.randint(3, 50, (2, 9)), {0: "batch", 1: "sequence"}
    mask, pixels = torch.ones(2, 9, dtype=torch.int64), "pixel_values"
    known: dict[str, tuple[dict[str, Any], dict[str, dict[int, str]]]] = {
        "text": ({"input_ids": ids, "attention_mask": mask}, {"input_ids": text, "attention_mask": text}),
        "ids": ({"input_ids": ids}, {"input_ids": {0: "batch"}}),
        "cached": (
            {"input_ids": ids, "attention_mask": torch.ones(2, 13, dtype=torch.int64)},
            {"input_ids": text, "attention_mask": {0: "batch", 1: "past + sequence"}},
        ),
        "seq2seq": (
            {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5].clone()},
            {"input_ids": text, "attention_mask": text, "decoder_input_ids": {0: "batch", 1: "target"}},
        ),
        "generator": (
            {"input_features": torch.randn(2, 16, 32), "decoder_input_ids": ids},
            {"input_features": {0: "batch"}, "decoder_input_ids": text},
        ),
        "image": ({pixels: torch.randn(2, 3, 32, 32)}, {pixels: {0: "batch"}}),
        "image64": ({pixels: torch.randn(2, 3, 64, 64)}, {pixels: {0: "batch"}}),
        "clip": (
            {"input_ids": ids, pixels: torch.randn(2, 3, 32, 32), "attention_mask": mask},
            {"input_ids": text, "attention_mask": text, pixels: {0: "images"}},
        ),
        "clip64": (
            {"input_ids": ids, pixels: torch.randn(2, 3, 64, 64), "attention_mask": mask},
            {"input_ids": text, "attention_mask": text, pixels: {0: "batch"}},
        ),
        "audio": ({"input_values": torch.randn(2, 800)}, {"input_values": {0: "batch"}}),
        "spectrogram": ({"input_values": torch.randn(2, 32, 16)}, {"input_values": {0: "batch"}}),
    }
    return known[kind]


def _lines(library: str) -> list[str]:
    """Return the lines of a library's table, without comments."""
    table = Path(__file__).with_name(f"architectures_{library}.txt").read_text(encoding="utf-8")
    return [line for line in table.splitlines() if line and not line.startswith("#")]


def _rows() -> tuple[Row, ...]:
    rows = []
    for line in _lines("timm"):
        name, size, *rest = line.split()
        pairs = (pair.split("=") for pair in rest[0].split(",")) if rest else ()
        settings = {
            key: tuple(int(v) for v in value.strip("()").split(";") if v) if "(" in value else int(value)
            for key, value in pairs
        }
        rows.append(Row(f"timm/{name}", settings, int(size)))
    for line in _lines("torchvision"):
        kind, size, *names = line.split()
        rows += [Row(f"torchvision/{name}", {"kind": kind}, int(size)) for name in names]
    return (*rows, *(Row(f"transformers/{name}") for name in TRANSFORMERS))


ROWS = _rows()
