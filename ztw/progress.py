"""Report the progress of a long job, as lines in its log and on the terminal."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ztw.errors import ZtwError, without_password

Report = Callable[[str], None]


class Note(str):
    """A line that stays on the screen: something was left out, replaced or computed again."""


def reporter(progress: bool | Report) -> Report | None:
    """Convert the argument `progress` of a public function to the function that receives the lines, or None.

    Args:
        progress: True = print to stderr, False = no output, or a function that takes a line.

    Raises:
        ZtwError: for any other value.
    """
    if isinstance(progress, bool):
        return on_screen if progress else None
    if not callable(progress):
        raise ZtwError(f"progress {progress!r}: must be True, False or a function that takes a line")
    return progress


def on_screen(line: str) -> None:
    """Print a line to stderr. On a terminal, a line of progress replaces the previous one."""
    if isinstance(line, Note) or not sys.stderr.isatty():
        print(f"note: {line}" if isinstance(line, Note) else line, file=sys.stderr, flush=True)
    else:
        end = "\n" if line.startswith("100 %") else ""
        print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)


# The terminal shows only the lines of a log that start with one of these.
PROGRESS, NOTE, DONE, FAILED = "progress: ", "note: ", "done: ", "error: "
NO_MEMORY = re.compile("out of memory|(can't|cannot) allocate memory|not enough memory", re.IGNORECASE)


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Report the progress of a loop of known length, at most once a second and less often in long loops.

    The time left is estimated from the steps of the last RECENT lines. The first step does not count, because a
    training may compile in it. The first estimate comes two steps later.

    Args:
        report: receives the lines; None = no output.
        clock: returns the time in seconds.
        done: number of steps done before.
    """

    RECENT = 20

    def __init__(
        self,
        total: int,
        report: Report | None = None,
        clock: Callable[[], float] = time.monotonic,
        done: int = 0,
    ) -> None:
        self.total, self.report, self.clock, self.done = max(total, 1), report, clock, done
        self.started = self.last = clock()
        self.marks: deque[tuple[int, float]] = deque(maxlen=self.RECENT)  # (steps done, when)

    def step(self, text: Callable[[], str]) -> None:
        """Count one step. text() describes the step and is called only when a line is due."""
        self.done += 1
        now = self.clock()
        if not self.marks:
            self.marks.append((self.done, now))
        if self.report is None or (
            self.done < self.total and now - self.last < max(1.0, (now - self.started) / 100)
        ):
            return
        self._say(text(), now)
        self.marks.append((self.done, now))

    def begin(self, text: str) -> None:
        """Report that a long step has started."""
        self._say(text, self.clock())

    def _say(self, text: str, now: float) -> None:
        if self.report is not None:
            self.last = now
            self.report(f"{100 * self.done // self.total:3d} %  {text}{self._left(now)}")

    def _left(self, now: float) -> str:
        if not self.marks:
            return ""
        done, when = self.marks[0]
        if self.done == self.total:
            return f"  {clock(0)} left"
        if self.done - done < 2:
            return ""
        return f"  {clock((now - when) / (self.done - done) * (self.total - self.done))} left"


@contextlib.contextmanager
def job_log(path: str | Path, rule: str, wildcards: Iterable[str] = ()) -> Iterator[Report]:
    """Write a job's output to its log.

    If the job fails, the log ends with the traceback and a line that names the error. The process exits with status 1.

    Args:
        rule: the job's rule.
        wildcards: values of the job's wildcards. The terminal shows rule and wildcards before each line.

    Yields:
        The function that reports progress.
    """
    path, what = Path(path), " ".join([rule, *wildcards])
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = None if os.environ.get("ZTW_MIRROR") else sys.stderr  # the launcher's screen reads the logs
    started, began = time.monotonic(), time.time()
    gc.freeze()  # otherwise Python searches all imported modules for garbage at the end, 0.4 s with torch
    with (
        path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):

        def say(line: str) -> None:
            line = without_password(line)
            with contextlib.suppress(OSError):  # a full disk must not hide the error that it caused
                print(line, file=log)
            if terminal is not None:
                print(f"{what}: {line.split(': ', 1)[1]}", file=terminal, flush=True)

        try:
            say(f"{PROGRESS}started")
            yield lambda text: say((NOTE if isinstance(text, Note) else PROGRESS) + text)
            print(f"worked {time.monotonic() - started:.3f} s, from {began:.3f}", file=log)
            say(f"{DONE}{clock(time.monotonic() - started)}")
        except Exception as error:
            with contextlib.suppress(OSError):
                log.write(without_password(traceback.format_exc()))
            text = describe(error, rule)
            if not isinstance(error, ZtwError | OSError) and not memory_ran_out(error):
                text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (traceback: {path})"
            say(FAILED + text)
            raise SystemExit(1) from error


def memory_ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory ran out. PyTorch's errors are recognised by their text."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def describe(error: BaseException, rule: str = "the job") -> str:
    """Describe an error that a user can fix, in one line; rule: the rule of the job."""
    if memory_ran_out(error):
        if "CUDA" in str(error):
            return "the GPU's memory ran out: lower batch_size, or use a larger GPU"
        return (
            f"memory ran out: raise mem_mb of {rule} (set-resources of the profile, or --set-resources"
            f" {rule}:mem_mb=MB), or lower batch_size; with --retries 2 a retry gets twice as much"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'writing'}: {error.strerror}"
    return without_password(" ".join(str(error).split()))
