"""Bring the documentation up to date: outputs between markers, docs/cli.md and the pictures.

`python docs/generate.py` rewrites what is stale; `--check` writes nothing and exits 1 if something is. Figures that
differ from run to run (latencies, seconds, rounding differences) are no reason to call a page stale; `--figures` brings
them up to date too.

A marker names what stands between it and the next `<!-- end -->`: a command after `$`, or a block of
docs/walkthrough.py. The commands of a page, and its Python, run from top to bottom in a folder of its own with models/
and example.onnx in it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import draw
import example
import onnx
import walkthrough

from spa_onnx.cli import COMMANDS, main

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
MARKER = re.compile(r"(?P<begin><!-- begin: (?P<name>.+?) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
PART = re.compile(MARKER.pattern + r"|```python\n(?P<code>.*?)```\n", re.DOTALL)
VARYING = (
    (re.compile(r"^latency\b.*\n( .*slower.*\n)?", re.MULTILINE), "latency\n"),
    (re.compile(r"^time\b.*\n", re.MULTILINE), "time\n"),
    (re.compile(r"largest( relative)? difference \S+"), "largest difference"),
    (re.compile(r"\b\d+(\.\d+)?(e-\d+)? (s|ms|seconds)\b"), "time"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "digest"),
    (re.compile(r"relative output error \S+|top-1 agreement \S+\s+%|accuracy\s+\S+\s+%\s+->\s+\S+\s+%"), "drift"),
    (re.compile(r"\s+"), " "),  # a figure of another length may break a line elsewhere
)
"""What may differ between two runs, and what stands for it in a comparison."""

COLUMNS = 100
"""Width of the help."""

CLI_HEAD = """# The command line
Written by docs/generate.py from `--help`; do not edit. Results go to stdout, progress and messages to stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | refused: the model or a file is not fit for it; the message says why and what to do |
| 2 | wrong usage: an option, a path, a regular expression |
| 3 | a check of the pruned model failed; nothing was written |
| 4 | a gate of `compare` did not hold |

A plan file is described in [plan.md](plan.md), the words of the messages in [how_it_works.md](how_it_works.md).
"""


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder with the models and the example, and the current one while it lasts."""
    before, columns = (
        Path.cwd(),
        os.environ.pop("COLUMNS", None),
    )  # pages are as wide as output that goes to no terminal
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        onnx.save(example.build(), folder / "example.onnx")
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)
            if columns is not None:
                os.environ["COLUMNS"] = columns


def run(command: str) -> str:
    """What a spa-onnx command prints on stdout. Raises RuntimeError with its message where it fails."""
    program, *arguments = shlex.split(command)
    if program != "spa-onnx":
        raise RuntimeError(f"{command!r} is no spa-onnx command")
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main.main(args=arguments, prog_name=program)
    except SystemExit as finished:
        if finished.code:
            raise RuntimeError(f"{command!r} ends with {finished.code}: {err.getvalue().strip()}") from finished
    finally:
        signal.signal(signal.SIGTERM, handler)
    return out.getvalue()


def _block(name: str) -> str:
    if name.startswith("$ "):
        lines = [line.rstrip() for line in run(name.removeprefix("$ ")).rstrip().splitlines()]
        return "\n".join(["```console", name, *lines, "```\n"])
    language = "json" if name == "plan" else "text"
    return f"```{language}\n{walkthrough.BLOCKS[name]()}\n```\n"


def fresh_page(content: str) -> str:
    """The page with every block as it comes out now; its Python runs in between, in the same folder."""
    names: dict[str, object] = {}

    def fresh_part(found: re.Match[str]) -> str:
        if found["name"]:
            return found["begin"] + _block(found["name"]) + found["end"]
        with contextlib.redirect_stdout(io.StringIO()):
            exec(found["code"], names)  # noqa: S102 - the page is ours, and this shows that its code works
        return found[0]

    with workplace():
        return PART.sub(fresh_part, content)


def cli_page() -> str:
    """docs/cli.md."""
    parts = [CLI_HEAD]
    top = click.Context(main, info_name="spa-onnx", terminal_width=COLUMNS, **main.context_settings)
    commands = [main.get_command(top, name) for name in COMMANDS]
    for context in (
        top,
        *(click.Context(command, top, command.name, terminal_width=COLUMNS) for command in commands if command),
    ):
        parts.append(f"## {context.command_path}\n```text\n{context.get_help()}\n```\n")
    return "\n".join(parts)


def pages() -> list[Path]:
    """The pages that people write."""
    return [ROOT / "README.md", *sorted(path for path in DOCS.glob("*.md") if path.name != "cli.md")]


def everything() -> Iterator[tuple[Path, str]]:
    """Each generated file, or page with generated blocks, as it comes out now."""
    yield DOCS / "cli.md", cli_page()
    for name, picture in draw.PICTURES.items():
        yield DOCS / "pictures" / f"{name}.svg", picture()
    for path in pages():
        content = path.read_text(encoding="utf-8")
        if MARKER.search(content):
            yield path, fresh_page(content)


def settled(content: str) -> str:
    """Without what differs from run to run."""
    for pattern, stand_in in VARYING:
        content = pattern.sub(stand_in, content)
    return content


def stale(alike: Callable[[str], str] = settled) -> Iterator[tuple[Path, str]]:
    """Return the files that are out of date, and what they should hold.

    alike: the part of a page that is compared.
    """
    for path, content in everything():
        if not path.is_file() or alike(path.read_text(encoding="utf-8")) != alike(content):
            yield path, content


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if something is stale.")
@click.option("--figures", is_flag=True, help="Count figures that differ from run to run, too.")
def generate(*, check: bool, figures: bool) -> None:
    """Rewrite the parts of the documentation that are stale."""
    found = list(stale(str) if figures else stale())
    for path, content in found:
        click.echo(f"{path.relative_to(ROOT)} {'is stale; run: make docs' if check else 'written'}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
    if check and found:
        sys.exit(1)


if __name__ == "__main__":
    generate()
