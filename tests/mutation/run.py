"""Mutation testing: change the code in a few hundred places, one at a time, and run the fast tests on each change.

    python tests/mutation/run.py               # or `make mutants`
    python tests/mutation/run.py --only norm   # the mutants of files with this in their path
    python tests/mutation/run.py --again       # only the mutants that survived the last run
    python tests/mutation/run.py --quick       # only the tests that are tried first

First, the lines that each test runs are recorded. The record is stored, and only tests that changed are recorded again.
Then each mutant is written into a copy of the project, in a process forked from one that has imported numpy, onnx and
other libraries, but not the package. The tests that run its line run there until one fails, those first that caught the
most. A mutant that passes all of them survives. Tests that start a command in another process are not used.
equivalent.txt lists the mutants that no test can catch, with reasons.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import pickle
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import cache_from_source
from itertools import accumulate
from pathlib import Path

import pytest
from jobs import Ending, Job, Task, run_all
from lines import Chosen, Recorder, Run, reaching
from places import Mutant, listed, sample

FOLDERS = ("spa_onnx/operators", "spa_onnx/plan", "spa_onnx/repair")
"""The folders that are mutated."""

FIRST = ("tests/test_golden.py",)
"""The tests that run first, until it is known which tests catch the most."""

COUNT, SEED, SHARE = 300, 1, 0.95
"""The minimum number of mutants; the seed of the sample; the share that must be caught."""

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".mutants"
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
LEFT_BEHIND = (
    ".git",
    ".venv",
    ".mutants",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "*.egg-info",
)
IMPORTED = (
    "click hypothesis jinja2 networkx numpy onnx.reference onnx_graphsurgeon onnxruntime rich scipy.linalg".split()
)
"""Libraries that take long to import and are not mutated."""

SOME, SOON = 200, 15.0
"""The number of tests that run first, and their total seconds; the others run only if these pass."""


@dataclass
class Result:
    """The outcome for a mutant (caught, timed out, equivalent or survived), and the test that failed."""

    mutant: Mutant
    outcome: str = "survived"
    killer: str = ""


@dataclass
class Memory:
    """How many mutants of a file each test, or any test of its file, has caught."""

    tests: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, file: str, killer: str) -> None:
        """Record that a test has caught a mutant of this file."""
        self.tests[file, killer] += 1
        self.tests[file, killer.partition("::")[0]] += 1

    def order(self, file: str, tests: Iterable[str], runs: Mapping[str, Run]) -> list[str]:
        """Return the tests in the order of their chance to fail soon."""
        stem = Path(file).stem

        def rank(test: str) -> float:
            home = test.partition("::")[0]
            hopes = (
                4 * self.tests[file, test] + self.tests[file, home] + 100 * home.startswith(FIRST) + 2 * (stem in home)
            )
            return max(runs[test].seconds, 0.02) / (1 + hopes)

        return sorted(tests, key=rank)


def _pytest(files: Iterable[str], plugin: object, *options: str) -> int:
    """Run the fast tests of these files."""
    quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # hypothesis is imported before pytest starts
    arguments = ["-q", *quiet, "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", *options, *files]
    return int(pytest.main(arguments, plugins=[plugin]))


def record(copies: Sequence[Path], files: Sequence[str]) -> dict[str, Run]:
    """Return the lines of `files` that every fast test runs. Stored records are used if nothing has changed."""
    homes = {str(path.relative_to(ROOT)): path.read_bytes() for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    shared = [path for folder in ("spa_onnx", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    helpers = [
        path for path in shared if str(path.relative_to(ROOT)) not in homes and path.parent != Path(__file__).parent
    ]
    base = hashlib.sha256(b"".join(path.read_bytes() for path in helpers)).digest()
    folder = KEPT / "lines"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Run] = {}

    def task(home: str, store: Path) -> Task:
        def work() -> int:
            recorder = Recorder(Path.cwd(), files)
            _pytest([home], recorder)
            store.write_bytes(pickle.dumps(dict(recorder.runs)))
            return 0

        def steps(_copy: Path) -> Generator[Job, Ending, None]:
            code = yield Job(work, 1800)
            print(f"{home}: {'recorded' if code == 0 else f'failed with {code}'}", flush=True)

        return steps

    keys = {home: hashlib.sha256(base + home.encode() + content).hexdigest() for home, content in homes.items()}
    stores = {home: folder / f"{key}.pickle" for home, key in keys.items()}
    run_all(iter([task(home, store) for home, store in stores.items() if not store.exists()]), copies)
    for store in stores.values():
        found |= pickle.loads(store.read_bytes())  # noqa: S301 - our own
    for old in set(folder.iterdir()) - set(stores.values()):
        old.unlink()
    return found


def attempt(result: Result, runs: Mapping[str, Run], memory: Memory, *, quick: bool = False) -> Task:
    """Return the task that runs the tests of a mutant: the most promising first, then, unless `quick`, the others."""
    mutant = result.mutant
    first, last = mutant.lines or (1, len(mutant.code.splitlines()))
    found = reaching(runs, mutant.file, first, last)
    if mutant.lines is None:  # it fills a table on import, which tests of this room read without a line of this file
        room = f"tests/{Path(mutant.file).parent.name}/"
        found = list(
            dict.fromkeys([*found, *(test for test, run in runs.items() if run.passed and test.startswith(room))])
        )

    def steps(copy: Path) -> Generator[Job, Ending, None]:
        path, answer = copy / mutant.file, copy.with_suffix(".killer")
        original, compiled = path.read_text(encoding="utf-8"), Path(cache_from_source(str(path)))
        ranked = memory.order(mutant.file, found, runs)
        spent = accumulate(runs[test].seconds for test in ranked)
        some = sum(1 for place, seconds in enumerate(spent) if place < SOME and seconds < SOON)
        try:
            for tests in filter(None, (ranked[:some], [] if quick else _by_file(ranked[some:]))):
                answer.write_text("", encoding="utf-8")
                path.write_text(mutant.code, encoding="utf-8")
                compiled.unlink(missing_ok=True)
                code = yield Job(partial(_tried, tests, answer), 30 + 5 * sum(runs[test].seconds for test in tests))
                if code != 0:
                    result.outcome = "timed out" if code is None else "caught"
                    result.killer = answer.read_text(encoding="utf-8")
                    break
        finally:
            path.write_text(original, encoding="utf-8")
            compiled.unlink(missing_ok=True)
        if result.killer:
            memory.add(mutant.file, result.killer)
        print(f"{result.outcome}: {mutant}\n  {result.killer or f'{len(found)} tests run this line'}", flush=True)

    return steps


def _by_file(tests: Sequence[str]) -> list[str]:
    """Return the tests grouped by file, because they share fixtures, files in the order of their first test."""
    homes = {home: place for place, home in enumerate(dict.fromkeys(test.partition("::")[0] for test in tests))}
    return sorted(tests, key=lambda test: homes[test.partition("::")[0]])


def _tried(tests: Sequence[str], answer: Path) -> int:
    """Run tests until one fails, and write its name to a file."""
    plugin = Chosen(tests)
    code = _pytest(dict.fromkeys(test.partition("::")[0] for test in tests), plugin, "-x")
    answer.write_text(plugin.killer, encoding="utf-8")
    return code


def report(results: Sequence[Result]) -> bool:
    """Print a table per file; return whether enough mutants were caught."""
    columns = ("caught", "timed out", "survived", "equivalent")
    table = {
        file: Counter(r.outcome for r in results if r.mutant.file == file)
        for file in dict.fromkeys(r.mutant.file for r in results)
    }
    table["all"] = Counter(r.outcome for r in results)
    print("\n" + "".join(f"{word:>11}" for word in ("mutants", *columns)))
    for file, counts in table.items():
        print("".join(f"{number:>11}" for number in (counts.total(), *(counts[c] for c in columns))) + f"  {file}")
    everything = table["all"]
    real = everything.total() - everything["equivalent"]
    share = (everything["caught"] + everything["timed out"]) / max(real, 1)
    print(f"\n{share:.1%} of {real} mutants that are not equivalent are caught, {SHARE:.0%} have to be")
    return share >= SHARE


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", metavar="PART")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as an interrupt, what was started is ended and put away
    files = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    KEPT.mkdir(exist_ok=True)
    for name in IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Path(folder, f"copy{number}") for number in range(options.jobs)]
        for copy in copies:
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        runs = record(copies, files)
        failing = [test for test, run in runs.items() if not run.passed]
        print(
            f"{len(runs)} tests, of which {len(failing)} fail without any change and are left out: {failing}",
            flush=True,
        )
        equivalent, last = listed(EQUIVALENT), KEPT / "survived.json"
        drawn = [mutant for mutant in sample(ROOT, files, options.count, options.seed) if options.only in mutant.file]
        if options.again:
            survived = {tuple(key) for key in json.loads(last.read_text(encoding="utf-8"))}
            drawn = [mutant for mutant in drawn if mutant.key in survived]
        results = [Result(mutant, "equivalent" if mutant.key in equivalent else "survived") for mutant in drawn]
        memory = Memory()
        run_all((attempt(r, runs, memory, quick=options.quick) for r in results if r.outcome != "equivalent"), copies)
    last.write_text(json.dumps([r.mutant.key for r in results if r.outcome == "survived"]), encoding="utf-8")
    return 0 if report(results) else 1


if __name__ == "__main__":
    sys.exit(main())
