"""One run at a time in a folder, and nothing left of one that was killed: processes, jobs, locks, half files."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from ztw.errors import ZtwError

MARK = "ZTW_RUN"  # in the environment of everything a run starts, so that a later run finds the orphans
OF_OTHERS = {"checkpoints", "mlflow-artifacts"}  # folders in a study that Snakemake knows nothing of
SCRATCH = re.compile(r"\..+\.(\d+|[0-9a-f]{32})(-journal|-wal|-shm)?")


@contextlib.contextmanager
def only_run(console: Console) -> Iterator[None]:
    """Hold the folder's lock; clear what a killed run left. Raises ZtwError when another run is alive."""
    Path("results").mkdir(exist_ok=True)
    with open("results/.lock", "a+") as lock:
        lock.seek(0)
        holder = lock.read().strip()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _another_run(holder) from error
        except OSError as error:  # Lustre without -o flock, some network file systems
            if _reproduces_here(holder):
                raise _another_run(holder) from error
            console.print(
                f"[bold yellow]warning:[/] results/.lock: no file locks here ({error.strerror}); going on without:"
                " start no second run in this folder from another machine",
                soft_wrap=True,
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        stop_orphans()
        clear_stale_lock()
        yield


def _another_run(holder: str) -> ZtwError:
    return ZtwError(f"another run is at work in this folder (process {holder}); wait for it or stop it")


def _reproduces_here(holder: str) -> bool:
    """Whether a process of this machine, by its number, is a run of this folder."""
    import psutil

    try:
        process = psutil.Process(int(holder))
        if process.pid == os.getpid():
            return False
        named = any(Path(part).name == "reproduce.py" for part in process.cmdline()[:3])
        return named and process.cwd() == os.getcwd()
    except (psutil.Error, ValueError):
        return False


def stop_orphans() -> None:
    """Stop what a killed run of this folder left running."""
    import psutil

    orphans = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == os.getcwd() and process.pid != os.getpid():
                process.kill()
                orphans.append(process)
        except psutil.Error:
            continue
    psutil.wait_procs(orphans, timeout=10)


def clear_stale_lock() -> None:
    """Remove Snakemake's lock when no Snakemake is alive in this folder; raises ZtwError when one is."""
    import psutil

    if not any(Path(".snakemake/locks").glob("*")):
        return
    for process in psutil.process_iter():
        try:
            snakemake = any(Path(part).name == "snakemake" for part in process.cmdline()[:3])
            if snakemake and process.cwd() == os.getcwd():
                raise ZtwError(
                    f"a snakemake run is at work in this folder (process {process.pid}); wait for it"
                )
        except psutil.Error:
            continue
    for lock in Path(".snakemake/locks").glob("*"):
        lock.unlink()


def check_known(study: Path) -> None:
    """Raise ZtwError where a study's results are here, but not Snakemake's records of how they were made.

    Without records Snakemake looks at the times of files only: results of other settings would be taken, and a copy
    with new times would be computed again. A file that was being made when a run was killed has a record of that.
    """
    tensors = study.rglob("*.safetensors")  # all else is made of them
    results = {str(path) for path in tensors if OF_OTHERS.isdisjoint(path.parts)}
    unknown = sorted(results - _recorded("metadata") - _recorded("incomplete"))
    if not unknown:
        return
    which = "they" if len(unknown) == len(results) else f"{len(unknown)} of them ({unknown[0]}, ...)"
    raise ZtwError(
        f"{study}: holds results, but .snakemake/ in this folder has no record of how {which} were made;"
        " copy .snakemake along with results, or move these results away to compute them again, or take them as they"
        " are: the same command with `-- --touch --forceall`"
    )


def _recorded(kind: str) -> set[str]:
    """The files that Snakemake has a record of: its own are named after theirs, in base64, long names in parts."""
    folder, found = Path(".snakemake") / kind, set()
    for record in folder.rglob("*"):
        name = "".join(part.removeprefix("@") for part in record.relative_to(folder).parts)
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):  # a folder, or of others
            found.add(base64.urlsafe_b64decode(name).decode())
    return found


def remove_scratch(study: Path) -> None:
    """Remove what jobs of a killed run were writing: .NAME.PROCESS of `ztw.files.atomic`, and stores half made,
    with what SQLite puts beside them."""
    for path in study.rglob(".*"):
        if SCRATCH.fullmatch(path.name):
            path.unlink()


def cancel_cluster_jobs(log: Path) -> None:
    """Cancel the jobs that a run, by its Snakemake's log, has left with Slurm: two runs must not write the same files.

    Raises ZtwError when Slurm does not take it.
    """
    if shutil.which("scancel") is None or not log.exists():
        return
    for run in re.findall(r"^SLURM run ID: (\S+)$", log.read_text(errors="replace"), re.M):
        command = ["scancel", "--name", run]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            reason = " ".join(str(error.stderr or "no answer").split())
            raise ZtwError(
                f"Slurm did not cancel the jobs of the run before ({reason}); cancel them"
                f" ({' '.join(command)}), then delete {log}"
            ) from error
