"""Plugins of pytest: record the lines that each test runs; run chosen tests in a given order."""

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
    """Return an empty mapping of file -> lines; a named function, so that a Run can be pickled."""
    return defaultdict(set)


@dataclass
class Run:
    """The record of one test.

    lines: file -> lines that ran, without those of the import. passed: also true if it was skipped. seconds: with
    fixtures.
    """

    lines: dict[str, set[int]] = field(default_factory=new_lines)
    passed: bool = True
    seconds: float = 0.0


class Recorder:
    """Record for every test the lines of `files` that run in it, in its fixtures, or in functions with a cache.

    Commands that a test starts in another process are not recorded.
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
        """Trace a test from its fixtures on, with empty caches, which another test may have filled."""
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
        """Count the lines of a fixture for all tests that use it, not only for the first one."""
        before = {name: set(numbers) for name, numbers in self._now.items()}
        self._now.clear()
        try:
            return (yield)
        finally:
            self._fixtures[fixturedef] = {name: set(numbers) for name, numbers in self._now.items()}
            for name, numbers in before.items():
                self._now[name] |= numbers

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the time and the outcome."""
        run = self.runs[report.nodeid]
        run.seconds += report.duration
        run.passed &= not report.failed


class Chosen:
    """Run only the given tests, in the given order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._place = {test: place for place, test in enumerate(tests)}
        self.killer = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the chosen tests."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self._place), key=lambda item: self._place[item.nodeid]
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the test that failed."""
        if report.failed:
            self.killer = report.nodeid


def reaching(runs: Mapping[str, Run], file: str, first: int, last: int) -> list[str]:
    """Return the tests that run a line from `first` to `last`, both included."""
    wanted = set(range(first, last + 1))
    return [test for test, run in runs.items() if run.passed and not wanted.isdisjoint(run.lines.get(file, ()))]
