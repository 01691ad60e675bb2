"""Which test runs which lines: pytest plugins that record it, and that run a choice of tests in a given order."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest


def new_lines() -> defaultdict[str, set[int]]:
    """File -> lines; a function with a name, so that a Run can be stored."""
    return defaultdict(set)


@dataclass
class Run:
    """What one test did.

    lines: file -> lines that ran, import aside. passed: also if it was skipped. seconds: with its fixtures.
    """

    lines: dict[str, set[int]] = field(default_factory=new_lines)
    passed: bool = True
    seconds: float = 0.0


class Recorder:
    """A plugin that records for every test the lines of `files` that run in it, in its fixtures or in what it caches.

    Only this process is looked into: a command that a test starts is not.
    """

    def __init__(self, root: Path, files: Collection[str]) -> None:
        self.runs: dict[str, Run] = defaultdict(Run)
        self._names = {str(root / file): file for file in files}
        self._now: dict[str, set[int]] = defaultdict(set)
        self._fixtures: dict[Any, dict[str, set[int]]] = {}

    def _call(self, frame: FrameType, _event: str, _arg: object) -> Any:
        name = self._names.get(frame.f_code.co_filename)
        if name is None or frame.f_code.co_name == "<module>":
            return None
        add = self._now[name].add
        add(frame.f_lineno)

        def line(frame: FrameType, _event: str, _arg: object) -> Any:
            add(frame.f_lineno)
            return line

        return line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Trace a test from its fixtures on, with empty caches: another test may have filled them."""
        self._forget(item.config.rootpath)
        self._now.clear()
        threading.settrace(self._call)
        sys.settrace(self._call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            info = getattr(item, "_fixtureinfo", None)
            fixtures = [one for several in (info.name2fixturedefs.values() if info else ()) for one in several]
            for lines in (self._now, *(self._fixtures.get(one, {}) for one in fixtures)):
                for name, numbers in lines.items():
                    self.runs[item.nodeid].lines[name] |= numbers

    @staticmethod
    def _forget(root: Path) -> None:
        for module in list(sys.modules.values()):
            if str(getattr(module, "__file__", "")).startswith(str(root)):
                for value in list(vars(module).values()):
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        """What a fixture runs counts for all tests that use it, not only for the first."""
        before = {name: set(numbers) for name, numbers in self._now.items()}
        self._now.clear()
        try:
            return (yield)
        finally:
            self._fixtures[fixturedef] = {name: set(numbers) for name, numbers in self._now.items()}
            for name, numbers in before.items():
                self._now[name] |= numbers

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Time and outcome."""
        run = self.runs[report.nodeid]
        run.seconds += report.duration
        run.passed &= not report.failed


class Chosen:
    """A plugin that runs the given tests alone, in the order in which they are given."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._place = {test: place for place, test in enumerate(tests)}
        self.killer = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the chosen ones."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self._place), key=lambda item: self._place[item.nodeid]
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The test that failed."""
        if report.failed:
            self.killer = report.nodeid


def reaching(runs: Mapping[str, Run], file: str, first: int, last: int) -> list[str]:
    """The tests that run a line between two, both included."""
    wanted = set(range(first, last + 1))
    return [test for test, run in runs.items() if run.passed and not wanted.isdisjoint(run.lines.get(file, ()))]
