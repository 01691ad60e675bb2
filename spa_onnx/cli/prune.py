"""The command `spa-onnx prune`."""

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
    help="Where to write the pruned model. Default: MODEL with .pruned.onnx.",
)
@click.option("--ratio", type=float, help="Share of the removable channels to remove, between 0 and 1.")
@click.option(
    "--target",
    default="",
    metavar="UNIT=SHARE",
    help="Instead of --ratio, the share of a cost to keep: macs=0.5, params=0.5, or both separated by a comma. "
    "The result keeps at most this, usually within 1 %.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Prune and repair in N rounds. Statistics are collected again in each; "
    "all rounds together save what one would.",
)
@click.option(
    "--criterion",
    cls=options.NameOption,
    type=options.Name("spa_onnx.scoring:CRITERIA"),
    default="obspa",
    show_default=True,
    help="How channels are scored: {names}.",
)
@click.option(
    "--scope",
    cls=options.NameOption,
    type=options.Name("spa_onnx.selection.select:SCOPES"),
    facts=options.criterion_facts,
    help="What is ranked together: each group, all channels, or groups of the same shape. "
    "All scopes save as many MACs as local. Default: global for {losses}, else local.",
)
@click.option(
    "--aggregate",
    type=options.Name("spa_onnx.scoring.aggregate:AGGREGATIONS"),
    default="sum",
    show_default=True,
    help="How the scores of all indices that a channel owns are combined.",
)
@click.option(
    "--normalise",
    type=options.Name("spa_onnx.scoring.aggregate:NORMALISATIONS"),
    default="mean",
    show_default=True,
    help="How the scores of groups are made comparable.",
)
@options.data_option
@options.test_data_option
@options.preprocess_option
@options.memory_option
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many samples to calibrate on. Default: 256; for small models up to 512 synthetic ones.",
)
@click.option(
    "--repair",
    cls=options.NameOption,
    type=options.Name("spa_onnx.repair.layerwise:REPAIRS"),
    facts=options.criterion_facts,
    help="What is refitted after pruning: weights and biases, biases only, or nothing. Default: {repairs}, else none.",
)
@click.option("--no-repair", is_flag=True, help="The same as --repair none: kept weights stay as they are.")
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
@click.option("--plan", type=click.Path(path_type=Path), help="Also write the plan: the removed channels, as JSON.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write a report as one HTML page.")
@options.json_option
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of random criteria and synthetic samples.",
)
@options.dim_option
@options.providers_option
@options.threads_option
@options.validate_option
@options.force_option
def command(model: Path, output: Path | None, output_option: Path | None, **option_values: Any) -> None:
    """Remove the least important channels of MODEL and write OUTPUT, a smaller model that was checked in onnxruntime.

    Give --ratio or --target. MODEL itself is never changed. Nothing is written unless every check passes.
    """
    from spa_onnx.cli.write import Outputs, check_report, write_result  # noqa: PLC0415
    from spa_onnx.model import files  # noqa: PLC0415
    from spa_onnx.pipeline import STEPS, prune  # noqa: PLC0415 - slow to import, and not needed for --help
    from spa_onnx.report.progress import progress  # noqa: PLC0415

    target = options.one_output(model, output, output_option)
    plan, report, force, as_json = (option_values.pop(name) for name in ("plan", "report", "force", "as_json"))
    sources = (*options.existing(option_values["data"]), *options.existing(option_values["test_data"]))
    files.check_targets((model, *sources), (target, plan, report), force=force)
    check_report(report)
    if option_values.pop("no_repair"):
        option_values["repair"] = "none"
    check, dims = not option_values.pop("no_validate"), dict(option_values.pop("dims"))
    with progress(STEPS) as show:
        result = prune(model, dims=dims, check=check, measure_latency=check, progress=show, **option_values)
    measured_on = option_values["test_data"] or option_values["data"]
    write_result(result, model, Outputs(target, plan, report, force=force, as_json=as_json), measured_on)
