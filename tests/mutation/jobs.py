"""Jobs in forked processes, each in a copy of the project."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

DEFAULT_MEMORY = 12 << 30
"""The maximum memory of the tests of one mutant, in bytes."""


@dataclass(frozen=True)
class Job:
    """A function for a forked process, which returns the exit code, and its time limit in seconds."""

    work: Callable[[], int]
    seconds: float


Ending: TypeAlias = "int | None"
"""An exit code, or None after a timeout."""


Task: TypeAlias = Callable[[Path], Generator[Job, Ending, None]]


def run_all(tasks: Iterator[Task], copies: Sequence[Path]) -> None:
    """Run tasks, as many at a time as there are copies. Each task may ask for one process after the other."""
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
    """A running task, its copy of the project, the job that it waits for, and when that job started."""

    steps: Generator[Job, Ending, None]
    copy: Path
    job: Job | None = None
    since: float = 0.0


def _go_on(one: Working, ending: Ending, free: list[Path], busy: dict[int, Working]) -> None:
    """Tell a task how its job ended, and start its next job."""
    try:
        one.job = one.steps.send(ending) if one.job else next(one.steps)
    except StopIteration:
        free.append(one.copy)
        return
    one.since = time.monotonic()
    busy[_start(one.job, one.copy)] = one


def _look(free: list[Path], busy: dict[int, Working]) -> None:
    """Continue the tasks whose job has ended or exceeded its time limit."""
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
    """Fork, and do the job in the copy, with the package and the tests of the copy."""
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
