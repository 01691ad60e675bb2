"""`spa-onnx prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa_onnx.cli import options


@click.command("prune")
@options.model_argument
@click.argument("output", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o",
    "--output",
    "output_option",
    type=click.Path(path_type=Path),
    help="Where to write; default: MODEL with .pruned.onnx.",
)
@click.option("--ratio", type=float, help="Share of the removable channels that goes, between 0 and 1.")
@click.option(
    "--target",
    default="",
    metavar="UNIT=SHARE",
    help="Instead of --ratio, the share that is kept: macs=0.5 or params=0.5, met from below within 1 % where channels allow it.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Prune and repair in N steps, with statistics collected again; together they save what one would save.",
)
@click.option(
    "--criterion",
    type=options.Name("spa_onnx.scoring:CRITERIA"),
    default="obspa",
    show_default=True,
    help="How channels are scored: obspa, wanda, activation-variance, activation-mean, perturbation, l1, l2, linf, fpgm, lamp, bn-scale, "
    "random.",
)
@click.option(
    "--scope",
    type=options.Name("spa_onnx.selection.select:SCOPES"),
    help="What is ranked together: each group, all channels, or groups of the same shape. All save as many MACs as `local`. "
    "Default: global for obspa and perturbation, else local.",
)
@click.option(
    "--aggregate",
    type=options.Name("spa_onnx.scoring.aggregate:AGGREGATIONS"),
    default="sum",
    show_default=True,
    help="How the scores of all slices that a channel owns become one.",
)
@click.option(
    "--normalise",
    type=options.Name("spa_onnx.scoring.aggregate:NORMALISATIONS"),
    default="mean",
    show_default=True,
    help="How the scores of a group are made comparable with another's.",
)
@options.data_option
@options.preprocess_option
@options.memory_option
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many samples to calibrate on. Default: 256; with small models up to 512 made-up ones.",
)
@click.option(
    "--repair",
    type=options.Name("spa_onnx.repair.layerwise:REPAIRS"),
    help="Refit the surviving weights, only their biases, or nothing. Default: obs for obspa, mean for activation-variance, else none.",
)
@click.option("--no-repair", is_flag=True, help="The same as --repair none: surviving weights stay as they are.")
@options.exclude_option
@click.option(
    "--multiple",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Keep channel counts multiples of N.",
)
@options.width_option
@options.attention_option
@click.option("--plan", type=click.Path(path_type=Path), help="Also write the plan: which channels went, as JSON.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write a report as one HTML page.")
@options.json_option
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="For criteria and samples that draw numbers.",
)
@options.dim_option
@options.validate_option
@options.force_option
def command(model: Path, output: Path | None, output_option: Path | None, **given: Any) -> None:
    """Remove channels of MODEL, as many as --ratio or --target says, and write OUTPUT, a smaller model that was checked in onnxruntime.

    MODEL itself is never changed. Nothing is written unless every check passes.
    """
    from spa_onnx import pipeline  # noqa: PLC0415 - slow to import, and not for --help
    from spa_onnx.cli.write import check_report, write_result  # noqa: PLC0415
    from spa_onnx.model import files  # noqa: PLC0415 - slow to import, and not for --help

    target = options.one_output(model, output, output_option)
    plan, report, force, as_json = (given.pop(name) for name in ("plan", "report", "force", "as_json"))
    files.check_targets((model, *options.existing(given["data"])), (target, plan, report), force=force)
    check_report(report)
    if given.pop("no_repair"):
        given["repair"] = "none"
    check = not given.pop("no_validate")
    with options.progress(pipeline.STEPS) as progress:
        result = pipeline.prune(
            model, dims=dict(given.pop("dims")), check=check, measure_latency=check, progress=progress, **given
        )
    write_result(result, model, target, plan=plan, report=report, data=given["data"], as_json=as_json, force=force)
