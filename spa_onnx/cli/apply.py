"""The command `spa-onnx apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa_onnx.cli import options


@click.command("apply")
@options.model_argument
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write the pruned model. Default: MODEL with .pruned.onnx.",
)
@options.data_option
@options.test_data_option
@options.preprocess_option
@options.memory_option
@options.json_option
@options.dim_option
@options.providers_option
@options.threads_option
@options.validate_option
@options.force_option
def command(
    model: Path, plan: Path, output: Path | None, *, as_json: bool, no_validate: bool, force: bool, **run_options: Any
) -> None:
    """Carry out a saved PLAN on the MODEL that it was made for."""
    from spa_onnx.cli.write import Outputs, write_result  # noqa: PLC0415
    from spa_onnx.model import files  # noqa: PLC0415
    from spa_onnx.pipeline import STEPS, apply_plan  # noqa: PLC0415 - slow to import, and not needed for --help
    from spa_onnx.plan.plan import read_plan  # noqa: PLC0415
    from spa_onnx.report.progress import progress  # noqa: PLC0415

    target = options.one_output(model, None, output)
    data, test_data = run_options["data"], run_options["test_data"]
    sources = (*options.existing(data), *options.existing(test_data))
    files.check_targets((model, plan, *sources), (target,), force=force)
    check, dims = not no_validate, dict(run_options.pop("dims"))
    with progress(STEPS) as show:
        result = apply_plan(
            model, read_plan(plan), check=check, measure_latency=check, dims=dims, progress=show, **run_options
        )
    write_result(result, model, Outputs(target, force=force, as_json=as_json), test_data or data)
