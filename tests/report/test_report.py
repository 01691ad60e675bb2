"""What a person reads: the tables on the console and the HTML page."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from command import MODELS, SHORT, copy_model, save, spa, tiny

from spa_onnx import job, pipeline
from spa_onnx.cli import main
from spa_onnx.report import console
from spa_onnx.report.result import Report

if TYPE_CHECKING:
    from pathlib import Path

RESNET, VIT = MODELS / "digits_resnet.onnx", MODELS / "digits_vit.onnx"


def lines(*args: object, columns: int | None = None) -> list[str]:
    """What a command prints, line by line."""
    env = {"COLUMNS": str(columns) if columns else None}
    result = CliRunner().invoke(main, [str(arg) for arg in args], env=env)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


DATA = MODELS / "digits_resnet.npz"


def figures(text: str) -> dict[str, list[str]]:
    """The rows of the table of costs."""
    return {
        row[0]: re.split(r"\s{2,}", row[1].strip())
        for row in re.findall(r"(?m)^(parameters|MACs|file size|latency)\s+(.*)$", text)
    }


def test_prune_shows_costs_groups_pins_drift_and_validation(tmp_path):
    text = "\n".join(
        lines("prune", RESNET, tmp_path / "new.onnx", "--ratio", "0.4", "--criterion", "l1", "--data", DATA)
    )
    words = " ".join(text.split())
    rows = figures(text)
    assert set(rows) == {"parameters", "MACs", "file size", "latency"}
    assert all(len(row) == 3 for row in rows.values())
    assert rows["file size"][0] == "331.96 kB"
    assert rows["parameters"][2] == "0.375"
    assert "7 pruned, 138 of 352 channels removed" in text
    assert "1 x graph output" in text
    assert "pruned == masked" in words
    assert "(on 400 samples of" in words


def test_the_three_most_frequent_reasons_are_shown_and_the_others_counted():
    causes = {"a": 4, "b": 1, "c": 3, "d": 2, "e": 1}
    pinned = tuple(("w[0]", 8, f"{cause}: here", cause) for cause, times in causes.items() for _ in range(times))
    report = Report((2, 1), (2, 1), (2, 1), None, (("v[0]", 8, 1),), pinned, (), None, None, {})
    rows = list(console._result_rows(report, None))
    first = rows.index(("pinned", "11 groups cannot lose channels:"))
    assert [text for _, text in rows[first + 1 : first + 5]] == [
        "4 x a",
        "3 x c",
        "2 x d",
        "2 x other reasons, see spa-onnx groups",
    ]


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["prune", "groups", "compare"])
def test_tables_fit_the_terminal_and_names_are_never_cut_short(tmp_path, columns, command):
    args = {
        "prune": ("prune", VIT, "v.onnx", *SHORT, "--force"),
        "groups": ("groups", VIT),
        "compare": ("compare", VIT, VIT),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        shown = lines(*args[command], columns=columns)
    assert not any("…" in line for line in shown)
    assert max(map(len, shown[1:])) <= columns
    if command == "groups":
        assert "blocks.0.attention.query.weight[1]" in "".join(line.split("  ")[0].strip() for line in shown)


def test_lines_do_not_end_in_spaces(tmp_path):
    for shown in (lines("prune", RESNET, tmp_path / "new.onnx", *SHORT), lines("groups", VIT)):
        assert all(line == line.rstrip() for line in shown)


def test_an_inexact_cut_is_named(tmp_path):
    text = "\n".join(lines("prune", VIT, tmp_path / "new.onnx", "--width", *SHORT))
    assert "inexact     9 nodes" in text
    assert "LayerNormalization" in text


def test_a_slower_result_comes_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "latency", lambda *_: [1.0, 2.0])
    text = "\n".join(lines("prune", save(tiny(), tmp_path / "m.onnx"), "--ratio", "0.4"))
    assert figures(text)["latency"] == ["1.000 ms", "2.000 ms", "2.000"]
    assert "--multiple 8" in text


class Page(HTMLParser):
    """The text of a page, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {value}" for name, value in attrs if name in {"src", "href", "action"}]
        self.open += [tag] if tag not in {"meta", "br"} else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.loads == []
    return page


def test_the_report_is_one_page_with_the_figures(tmp_path):
    args = ("--ratio", "0.4", "--criterion", "l1", "--data", DATA, "--report", tmp_path / "r.html")
    spa("prune", RESNET, tmp_path / "new.onnx", *args)
    page = read_page(tmp_path / "r.html")
    text = "".join(page.text)
    for words in (
        "79,914",
        "0.375",
        "accuracy 99.50 %",
        "stem.conv.weight[0]",
        "graph output",
        "Pruned == masked",
        "ratio",
    ):
        assert words in text, words
    assert "url(" not in text
    assert "@import" not in text


def test_the_report_says_what_was_not_checked(tmp_path):
    spa("prune", RESNET, tmp_path / "new.onnx", "--report", tmp_path / "r.html", *SHORT)
    assert "Validation was switched off" in "".join(read_page(tmp_path / "r.html").text)


def test_names_in_a_model_cannot_write_into_the_report(tmp_path):
    model = tmp_path / "<script>alert(1)<script>.onnx"
    copy_model(tmp_path).rename(model)
    spa("prune", model, tmp_path / "new.onnx", "--report", tmp_path / "r.html", *SHORT)
    page = read_page(tmp_path / "r.html")
    assert "<script>alert(1)" in "".join(page.text)


def test_without_jinja2_the_report_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(pipeline, "prune", lambda *_, **__: pytest.fail("work was done"))
    result = spa("prune", RESNET, tmp_path / "new.onnx", "--report", tmp_path / "r.html", *SHORT)
    assert result.exit_code == 2
    assert "spa-onnx[report]" in result.stderr
