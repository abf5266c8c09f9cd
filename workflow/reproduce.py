"""Run a study with Snakemake: one line per job on the screen, Snakemake's own words in a log, the table at the end.

usage: python workflow/reproduce.py [CONFIG] [--cores N | --profile NAME_OR_FOLDER] [-- SNAKEMAKE ARGUMENTS]
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markup import escape

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # its neighbours, and ztw itself
from finished import Finished, undelivered
from gpus import count_gpus
from machine import ensure_user, usable_cores
from one_run import MARK, cancel_cluster_jobs, check_known, only_run, remove_scratch
from screen import Screen, show_results

from ztw.errors import ZtwError
from ztw.progress import describe
from ztw.reporting.sqlite_store import prepare
from ztw.study.config import check_study, read_config, study_name
from ztw.study.environment import search_path, settings_of_others
from ztw.study.layout import Layout
from ztw.study.settings import Study

# Snakemake's arguments with which it computes nothing: what it says is then what was asked for.
QUESTIONS = (
    *("-n", "--dry-run", "--dryrun", "--lint", "--list-rules", "--list", "-l", "--list-target-rules", "--lt"),
    *("--summary", "-S", "--detailed-summary", "-D", "--rulegraph", "--filegraph", "--dag", "--d3dag"),
    *("--report", "--containerize", "--list-changes", "--list-input-changes", "--list-params-changes"),
    *("--unlock", "--delete-all-output", "--help", "-h", "--version", "-v"),
)
# Its flags of one letter without a value, of which several may stand in one argument: -np
FLAGS, ASKING_FLAGS = set("nFfkptlSDhv"), set("nlSDhv")
PLAIN = {"✓": "+", "±": "+-", "≈": "~", "…": "...", "─": "-", "≥": ">=", "≤": "<="}
# Seconds that a run has to stop in: a training's checkpoint, a cluster's answer.
LOCAL_PATIENCE, CLUSTER_PATIENCE = 10.0, 60.0
# All that Snakemake knows but "code": for that the time of a script counts, a clone's is new; params have its digest.
TRIGGERS = ("input", "mtime", "params", "software-env")
SHELL_WORDS = re.compile(r"""[\s"'`$\\;&|<>()*?]""")


def main() -> int:
    """Run the study; returns the exit status."""
    clear_environment()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("config", nargs="?", default="config/quick.yaml")
    parser.add_argument("--cores", type=cores, default=usable_cores())
    parser.add_argument(
        "--profile", help="slurm, or a folder: run the jobs with that Snakemake profile's executor"
    )
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, extra = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    use_plain_characters()
    console = Console(highlight=False)
    try:
        check_python()
        settings = read_study(arguments.config)
        check_installed(settings.tracking)
        ensure_user(settings.data.root)
        study = Path("results") / study_name(arguments.config)
        command = snakemake_command(arguments, settings.device)
        if any(map(is_question, extra)):  # answered on the screen
            return subprocess.run([*command, *extra], check=False).returncode
        with only_run(console):
            remove_scratch(study)
            finished = Finished(arguments.config, settings, study)
            status = 0
            if extra or not finished:
                if "--touch" not in extra:
                    check_known(study)
                check_plugins(settings)
                for runs in undelivered(study):
                    runs.unlink()  # missing, the cell is logged again
                if settings.tracking == "sqlite" and (said := prepare(Layout(study).database)):
                    console.print(f"note: {said}", soft_wrap=True, markup=False)
                patience = LOCAL_PATIENCE if arguments.profile is None else CLUSTER_PATIENCE
                status = run_snakemake([*command, *extra], study, console, patience)
                if status == 0 and not extra and not undelivered(study):
                    finished.note()
        if status == 0:
            show_results(console, study, settings.tracking, arguments.config)
    except (ZtwError, OSError) as error:
        console.print(f"[bold red]error:[/] {escape(describe(error))}", soft_wrap=True)
        return 1
    return status


def clear_environment() -> None:
    """Start this process again where variables are set that a run ignores: Python has read some of them already.

    What it starts imports the ztw beside it, wherever the environment has another.
    """
    if ignored := settings_of_others(os.environ):
        kept = {name: value for name, value in os.environ.items() if name not in ignored}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)
    os.environ["PYTHONPATH"] = search_path(str(HERE.parent.absolute()), os.environ)


def cores(text: str) -> int:
    """A number of cores; without any, Snakemake would wait for ever. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number >= 1")
    return int(text)


def is_question(argument: str) -> bool:
    """Whether Snakemake computes nothing with an argument."""
    letters = set(argument[1:])
    several = argument[:1] == "-" and letters <= FLAGS and bool(letters & ASKING_FLAGS)
    return several or argument.split("=")[0] in QUESTIONS


def check_python() -> None:
    """Raise ZtwError where Snakemake could not start a script: it hands its Python's path to a shell unquoted."""
    if SHELL_WORDS.search(sys.executable):
        raise ZtwError(
            f"{sys.executable!r}: the path of this Python has a space or another character that shells read as"
            " more than a letter; move it (.venv is in the folder of the Makefile)"
        )


def read_study(path: str) -> Study:
    """Read and check a study; raises ZtwError."""
    config = read_config(path)
    try:
        return check_study(config)
    except ZtwError as error:
        raise ZtwError(f"{path}: {error}") from error


def check_plugins(study: Study) -> None:
    """Raise ZtwError where a part of the user's own breaks its contract, before anything trains."""
    if study.plugins:
        from ztw.testing import check_registered  # imports torch

        check_registered()


def check_installed(tracking: str) -> None:
    """Raise ZtwError where a package is missing that only the workflow needs."""
    for package in ("snakemake", "psutil", *(["mlflow"] if tracking != "none" else [])):
        if find_spec(package) is None:
            raise ZtwError(f"the workflow needs {package}, which is missing: pip install 'ztw[workflow]'")


def use_plain_characters() -> None:
    """Where the terminal (or the file) has no others: LANG=C, for instance."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return "".join(PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end

    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def snakemake_command(arguments: argparse.Namespace, device: str) -> list[str]:
    """Snakemake on a study: as a profile says, or on the cores and GPUs of this machine.

    As many jobs with a network at once as there are GPUs.
    """
    # -P: not what lies in this folder under the name of a module
    command = [sys.executable, "-Pm", "snakemake", "--snakefile", str(HERE / "Snakefile")]
    command += ["--configfile", arguments.config]
    # whatever a profile says: a changed setting runs a job again, a file that was only copied does not
    command += ["--rerun-triggers", *TRIGGERS, "--max-checksum-file-size", "1GB"]
    if arguments.profile is None:
        command += ["--workflow-profile", str(HERE / "profiles" / "default")]
        gpus = count_gpus(device)
        command += ["--resources", f"gpu={gpus}"] if gpus else []
        return [*command, "--cores", str(arguments.cores)]
    return [*command, "--workflow-profile", str(profile_folder(arguments.profile)), "--rerun-incomplete"]


def profile_folder(profile: str) -> Path:
    """The folder of a profile: one of ours by name, or any; raises ZtwError when there is none."""
    ours = sorted(path.parent.name for path in HERE.glob("profiles/*/config.yaml"))
    folder = HERE / "profiles" / profile if profile in ours else Path(profile)
    if not any(folder.glob("config*.yaml")):
        raise ZtwError(
            f"PROFILE={profile}: no folder with a config.yaml; allowed: {', '.join(ours)}, or a folder"
        )
    return folder


def run_snakemake(command: list[str], study: Path, console: Console, patience: float) -> int:
    """Run Snakemake in a process group of its own and mirror its jobs; returns its exit status."""
    logs = study / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [*command, "--report", str(study / "report.html"), "--report-after-run"]
    environment = {**os.environ, "ZTW_MIRROR": "1", MARK: os.getcwd()}
    log = logs / "snakemake.log"
    cancel_cluster_jobs(log)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
        for ends in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ends, _raise_interrupt)
        try:
            with Screen(console, logs, log) as screen:
                while process.poll() is None:
                    screen.update()
                    time.sleep(0.25)
                screen.update()
        except KeyboardInterrupt:
            stop(process, patience)
            with contextlib.suppress(OSError, SystemExit):  # the terminal may be what has ended
                console.print("stopped; finished work is kept, the same command goes on from here")
            return 130
        finally:
            # nothing computes on without its screen: `reproduce | head`, a closed terminal
            stop(process, patience)
            # where that fails, after a Snakemake that had to be killed, the next call tries again
            with contextlib.suppress(ZtwError):
                cancel_cluster_jobs(log)
        if process.returncode:
            screen.explain_failure()
        return process.returncode


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def stop(process: subprocess.Popen, patience: float) -> None:
    """End a process group that is still at work: politely, with so many seconds' patience, then not."""
    if process.poll() is not None:
        return
    for sent in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
            process.wait(patience)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


if __name__ == "__main__":
    sys.exit(main())
