"""Allow one run at a time in a folder, and remove what a killed run left: processes, locks, files, Slurm jobs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from ztw.errors import ZtwError

MARK = "ZTW_RUN"  # environment variable of all processes of a run, by which the next run finds them
OF_OTHERS = {"checkpoints", "mlflow-artifacts"}  # folders of a study without outputs of Snakemake
SCRATCH = re.compile(r"\..+\.\d+(-journal|-wal|-shm)?")


@contextlib.contextmanager
def only_run(console: Console) -> Iterator[None]:
    """Hold the folder's lock, and remove what a killed run left. Raises ZtwError if another run is active."""
    Path("results").mkdir(exist_ok=True)
    with open("results/.lock", "a+") as lock:
        lock.seek(0)
        holder = lock.read().strip()
        another = ZtwError(f"another run uses this folder (process {holder}); wait for it or stop it")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise another from error
        except OSError as error:  # Lustre without -o flock, some network file systems
            if holder in map(str, _processes_here("reproduce.py")):
                raise another from error
            console.print(
                f"[bold yellow]warning:[/] results/.lock: the file system has no locks ({error.strerror});"
                " do not start a second run in this folder from another machine",
                soft_wrap=True,
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        stop_orphans()
        clear_stale_lock()
        yield


def _processes_here(program: str) -> Iterator[int]:
    """Yield the other processes of this machine that run a program in this folder."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            names = [Path(word).name for word in process.cmdline()[:3]]
            if program in names and process.cwd() == os.getcwd() and process.pid != os.getpid():
                yield process.pid


def stop_orphans() -> None:
    """Kill the processes that a killed run of this folder left."""
    import psutil

    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == os.getcwd() and process.pid != os.getpid():
                process.kill()
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=10)


def clear_stale_lock() -> None:
    """Remove the lock of a killed Snakemake. Raises ZtwError if a Snakemake is running in this folder."""
    if any(Path(".snakemake/locks").glob("*")):
        for process in _processes_here("snakemake"):
            raise ZtwError(f"a snakemake run uses this folder (process {process}); wait for it")
        shutil.rmtree(".snakemake/locks")


def check_known(study: Path) -> None:
    """Raise ZtwError if Snakemake has no record of a result; a marker of an unfinished job counts as a record.

    Without records, Snakemake compares only the times of files: it would accept results of other settings, and compute
    copied results again.
    """
    results = [str(path) for path in study.rglob("*.safetensors") if OF_OTHERS.isdisjoint(path.parts)]
    known = set()  # paths of results in base64; Snakemake splits long ones into parts that start with @
    for folder in (Path(".snakemake/metadata"), Path(".snakemake/incomplete")):
        known |= {re.sub("[/@]", "", str(path.relative_to(folder))) for path in folder.rglob("*")}
    unknown = sorted(path for path in results if urlsafe_b64encode(os.fsencode(path)).decode() not in known)
    if unknown:
        which = f"{len(unknown)} of {len(results)} results ({unknown[0]}, ...)"
        raise ZtwError(
            f"{study}: .snakemake/ has no record of how {which} were made; copy .snakemake/ together with the results,"
            " or move the results away to compute them again, or use them unchecked by the same command with"
            " `-- --touch --forceall`"
        )


def remove_scratch(study: Path) -> None:
    """Remove incomplete files of a killed run: .NAME.PROCESS of `ztw.files.atomic`, and SQLite's journals of these."""
    for path in study.rglob(".*"):
        if SCRATCH.fullmatch(path.name):
            path.unlink()


def cancel_cluster_jobs(events: Path) -> None:
    """Cancel the Slurm jobs of the last run, found in its events, because two runs must not write the same files.

    Raises ZtwError if Slurm does not cancel them.
    """
    text = events.read_text(errors="replace") if shutil.which("scancel") and events.exists() else ""
    for run in re.findall(r'"SLURM run ID: ([^\s"]+)"', text):
        command = ["scancel", "--name", run]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            reason = " ".join(str(error.stderr or "no answer").split())
            raise ZtwError(
                f"Slurm did not cancel the jobs of the last run ({reason}); cancel them ({' '.join(command)}), then"
                f" delete {events}"
            ) from error
