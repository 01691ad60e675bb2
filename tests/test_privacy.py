"""onnxruntime's usage reports are off: a prune leaves no file of theirs behind, and looks up no host."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import MODELS, REPOSITORY

SCRIPTS = [
    path for folder in ("spa_onnx", "benchmarks", "models", "docs") for path in (REPOSITORY / folder).rglob("*.py")
]

LOOK_UPS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    FILE *log = fopen(getenv("LOOK_UPS"), "a");
    fprintf(log, "%s\\n", host ? host : "-");
    fclose(log);
    (void)service, (void)hints, (void)result;
    return EAI_NONAME;
}
"""
"""A library that notes every look-up of a host, and lets it fail."""

PRUNE = """
import spa_onnx, sys, time
spa_onnx.prune(sys.argv[1], 0.4, criterion="l1")
time.sleep(10)  # reports leave seconds after a session opens
"""
LOOK_UP = """
import socket, sys
try:
    socket.getaddrinfo("nobody.invalid", 443)
except OSError:
    pass
"""


@pytest.fixture
def watched(tmp_path: Path) -> dict[str, str]:
    """An environment with folders of its own, in which look-ups are noted in the file LOOK_UPS."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("look-ups are noted by a library that a C compiler makes on Linux")
    source, library = tmp_path / "look_ups.c", tmp_path / "look_ups.so"
    source.write_text(LOOK_UPS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    home = tmp_path / "home"
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    folders = dict.fromkeys(("HOME", "TMPDIR"), str(home))
    return {**inherited, **folders, "LD_PRELOAD": str(library), "LOOK_UPS": str(tmp_path / "look_ups.txt")}


def run(code: str, environment: dict[str, str], *arguments: object) -> tuple[list[Path], str]:
    """The files that a program leaves in its folders, and the hosts that it looks up."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, check=True, timeout=120)
    log = Path(environment["LOOK_UPS"])
    return [path for path in Path(environment["HOME"]).rglob("*") if path.is_file()], (
        log.read_text() if log.exists() else ""
    )


@pytest.mark.slow
def test_a_prune_reports_nothing(watched: dict[str, str]) -> None:
    assert run(PRUNE, watched, MODELS / "digits_resnet.onnx") == ([], "")


def test_a_look_up_would_be_noticed(watched: dict[str, str]) -> None:
    assert run(LOOK_UP, watched)[1] == "nobody.invalid\n"


def test_nothing_imports_onnxruntime_before_spa_onnx_has_switched_reports_off() -> None:
    early = [
        str(path.relative_to(REPOSITORY))
        for path in SCRIPTS
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "onnxruntime" in {*(alias.name for alias in node.names), getattr(node, "module", None)}
    ]
    assert not early
