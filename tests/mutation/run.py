"""Change the code in a few hundred places, one at a time, and see whether the fast tests notice.

    python tests/mutation/run.py               # or `make mutants`
    python tests/mutation/run.py --only norm   # the mutants of files with this in their path
    python tests/mutation/run.py --again       # those alone that survived the last time
    python tests/mutation/run.py --quick       # the tests that are tried first, and no others

First every test says which lines it runs; that is kept, and only what has changed is asked again. Then each mutant is
written into a copy of the project, in a process forked from one that has numpy, onnx and the rest imported but not the
package, and the tests that run its line are run there until one fails: first those that have noticed the most. A mutant
that all of them pass survives. Tests that only start a command in a process of its own are not asked. What no test can
notice stands in equivalent.txt with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import cache_from_source
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import pytest
from lines import Chosen, Recorder, Run, reaching
from places import Mutant, listed, sample

FOLDERS = ("spa_onnx/operators", "spa_onnx/plan", "spa_onnx/repair")
"""What is changed."""

FIRST = ("tests/test_golden.py",)
"""Tests that are asked before others, until it is known which notice the most."""

COUNT, SEED, SHARE = 300, 1, 0.95
"""How many mutants at least; by what they are drawn; how many of them have to be caught."""

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
"""What takes long to import and is not changed."""

SOME, SOON = 200, 15.0
"""How many tests are asked at first, and for how many seconds of them; only for what they all pass, the rest are."""
DEFAULT_MEMORY = 12 << 30
"""Bytes that the tests of one mutant may take."""


@dataclass(frozen=True)
class Job:
    """What a forked process does in its copy: a function that gives its exit code, and how long that may take."""

    work: Callable[[], int]
    seconds: float


Ending: TypeAlias = "int | None"
"""An exit code, or None where the time ran out."""
Task: TypeAlias = Callable[[Path], Generator[Job, Ending, None]]


@dataclass
class Result:
    """What became of a mutant: caught, timed out, equivalent or survived; by which test, where one failed."""

    mutant: Mutant
    outcome: str = "survived"
    killer: str = ""


@dataclass
class Memory:
    """How often each test, and any test of its file, has noticed a mutant of a file."""

    tests: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, file: str, killer: str) -> None:
        """A test has noticed a mutant of this file."""
        self.tests[file, killer] += 1
        self.tests[file, killer.partition("::")[0]] += 1

    def order(self, file: str, tests: Iterable[str], runs: Mapping[str, Run]) -> list[str]:
        """First those from which an answer can be hoped for soonest."""
        stem = Path(file).stem

        def rank(test: str) -> float:
            home = test.partition("::")[0]
            hopes = (
                4 * self.tests[file, test] + self.tests[file, home] + 100 * home.startswith(FIRST) + 2 * (stem in home)
            )
            return max(runs[test].seconds, 0.02) / (1 + hopes)

        return sorted(tests, key=rank)


def run_all(tasks: Iterator[Task], copies: Sequence[Path]) -> None:
    """Carry tasks out, as many at a time as there are copies; each may ask for one process after the other."""
    free, busy = list(copies), dict[int, Working]()
    try:
        for task in tasks:
            copy = free.pop()
            _go_on(Working(task(copy), copy), None, free, busy)
            while not free:
                _look(free, busy)
        while busy:
            _look(free, busy)
    finally:
        for pid in busy:
            os.killpg(pid, signal.SIGKILL)


@dataclass
class Working:
    """A task on its way, in its copy; the job that it waits for, since when."""

    steps: Generator[Job, Ending, None]
    copy: Path
    job: Job | None = None
    since: float = 0.0


def _go_on(one: Working, ending: Ending, free: list[Path], busy: dict[int, Working]) -> None:
    """Tell a task how its job ended, and start the next."""
    try:
        one.job = one.steps.send(ending) if one.job else next(one.steps)
    except StopIteration:
        free.append(one.copy)
        return
    one.since = time.monotonic()
    busy[_start(one.job, one.copy)] = one


def _look(free: list[Path], busy: dict[int, Working]) -> None:
    """Go on with the tasks whose job has ended, or has run for too long."""
    time.sleep(0.01)
    for pid, one in list(busy.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        late = one.job is not None and time.monotonic() - one.since > one.job.seconds
        if done or late:
            if not done:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del busy[pid]
            _go_on(one, os.waitstatus_to_exitcode(status) if done else None, free, busy)


def _start(job: Job, copy: Path) -> int:
    """Fork, and do the job in the copy, with its package and its tests."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        log = os.open(copy.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(copy)
        resource.setrlimit(resource.RLIMIT_AS, (DEFAULT_MEMORY, DEFAULT_MEMORY))
        sys.path[0] = str(copy)
        os.environ["PYTHONPATH"] = str(copy)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with interrupts ignored
        hypothesis = importlib.import_module("hypothesis")
        phases = (
            hypothesis.Phase.explicit,
            hypothesis.Phase.generate,
        )  # that an example fails is enough: nobody reads the smallest
        hypothesis.settings.register_profile("mutants", phases=phases, database=None)
        hypothesis.settings.load_profile("mutants")
        code = job.work()
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def _pytest(files: Iterable[str], plugin: object, *options: str) -> int:
    """Run the fast tests of these files."""
    quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # hypothesis is imported before pytest starts
    arguments = ["-q", *quiet, "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", *options, *files]
    return int(pytest.main(arguments, plugins=[plugin]))


def record(copies: Sequence[Path], files: Sequence[str]) -> dict[str, Run]:
    """Which lines of `files` every fast test runs; what is known from before is not asked again."""
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
    """Try the tests that run a mutant's line: some, and if they pass the rest, unless it is to be quick."""
    mutant = result.mutant
    first, last = mutant.lines or (1, len(mutant.code.splitlines()))
    found = reaching(runs, mutant.file, first, last)

    def steps(copy: Path) -> Generator[Job, Ending, None]:
        path, told = copy / mutant.file, copy.with_suffix(".killer")
        original, compiled = path.read_text(encoding="utf-8"), Path(cache_from_source(str(path)))
        ranked = memory.order(mutant.file, found, runs)
        spent = accumulate(runs[test].seconds for test in ranked)
        some = sum(1 for place, seconds in enumerate(spent) if place < SOME and seconds < SOON)
        try:
            for tests in filter(None, (ranked[:some], [] if quick else _by_file(ranked[some:]))):
                told.write_text("", encoding="utf-8")
                path.write_text(mutant.code, encoding="utf-8")
                compiled.unlink(missing_ok=True)
                code = yield Job(partial(_tried, tests, told), 30 + 5 * sum(runs[test].seconds for test in tests))
                if code != 0:
                    result.outcome = "timed out" if code is None else "caught"
                    result.killer = told.read_text(encoding="utf-8")
                    break
        finally:
            path.write_text(original, encoding="utf-8")
            compiled.unlink(missing_ok=True)
        if result.killer:
            memory.add(mutant.file, result.killer)
        print(f"{result.outcome}: {mutant}\n  {result.killer or f'{len(found)} tests run this line'}", flush=True)

    return steps


def _by_file(tests: Sequence[str]) -> list[str]:
    """Tests of one file behind each other, since they share fixtures; files in the order in which they come first."""
    homes = {home: place for place, home in enumerate(dict.fromkeys(test.partition("::")[0] for test in tests))}
    return sorted(tests, key=lambda test: homes[test.partition("::")[0]])


def _tried(tests: Sequence[str], told: Path) -> int:
    """Run tests until one fails, whose name is written down."""
    plugin = Chosen(tests)
    code = _pytest(dict.fromkeys(test.partition("::")[0] for test in tests), plugin, "-x")
    told.write_text(plugin.killer, encoding="utf-8")
    return code


def report(results: Sequence[Result]) -> bool:
    """Print a table per file and what survived; whether enough were caught."""
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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", metavar="PART")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as an interrupt, what was started is ended and put away
    files = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    KEPT.mkdir(exist_ok=True)
    for name in IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Path(folder, f"copy{number}") for number in range(given.jobs)]
        for copy in copies:
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        runs = record(copies, files)
        failing = [test for test, run in runs.items() if not run.passed]
        print(
            f"{len(runs)} tests, of which {len(failing)} fail without any change and are left out: {failing}",
            flush=True,
        )
        equivalent, last = listed(EQUIVALENT), KEPT / "survived.json"
        drawn = [mutant for mutant in sample(ROOT, files, given.count, given.seed) if given.only in mutant.file]
        if given.again:
            survived = {tuple(key) for key in json.loads(last.read_text(encoding="utf-8"))}
            drawn = [mutant for mutant in drawn if mutant.key in survived]
        results = [Result(mutant, "equivalent" if mutant.key in equivalent else "survived") for mutant in drawn]
        memory = Memory()
        run_all((attempt(r, runs, memory, quick=given.quick) for r in results if r.outcome != "equivalent"), copies)
    last.write_text(json.dumps([r.mutant.key for r in results if r.outcome == "survived"]), encoding="utf-8")
    return 0 if report(results) else 1


if __name__ == "__main__":
    sys.exit(main())
