"""Run a study with Snakemake: one line per job on the screen, Snakemake's output in a log, the table at the end.

usage: python workflow/reproduce.py [CONFIG] [--cores N | --profile NAME_OR_FOLDER] [-- SNAKEMAKE ARGUMENTS]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # for the modules of this folder, and ztw
from ztw.errors import ZtwError
from ztw.extras import missing, need

try:
    need("the workflow", "workflow", "pydantic", "rich", "yaml")  # imported below
except ZtwError as error:
    print(f"error: {error}")
    sys.exit(1)

from machine import count_gpus, ensure_user, usable_cores, use_plain_characters
from one_run import check_known, only_run, remove_scratch
from outcome import show_results, undelivered
from rich.console import Console
from rich.markup import escape
from watch import run_snakemake

from ztw.progress import describe
from ztw.reporting.sqlite_store import prepare
from ztw.study.config import check_study, read_config, study_name
from ztw.study.environment import search_path, settings_of_others
from ztw.study.layout import Layout
from ztw.study.settings import Study

# Arguments with which Snakemake computes nothing, so that its output goes to the screen. -np stands for -n -p.
QUESTION = re.compile(
    "-(?=.*[nlSDhv])[nFfkptlSDhv]+"
    "|--(dry-?run|lint|list.*|lt|summary|detailed-summary|rulegraph|filegraph|d3dag|dag|report|containerize"
    "|unlock|delete-all-output|help|version)(=.*)?"
)
# All of Snakemake's triggers but "code": a script has a new time in every clone, and params have a digest of the code.
TRIGGERS = ("input", "mtime", "params", "software-env")


def main() -> int:
    """Run the study; return the exit status."""
    clear_environment()
    use_plain_characters()
    arguments, extra = read_arguments(sys.argv[1:])
    console = Console(highlight=False)
    try:
        study = read_study(arguments.config)
        check_installation(study.tracking)
        ensure_user(study.data.root)
        command = snakemake_command(arguments, study.device)
        if any(map(QUESTION.fullmatch, extra)):
            return subprocess.run([*command, *extra], check=False).returncode
        if any(argument.startswith("--logger") for argument in extra):
            raise ZtwError(
                "--logger: cannot be set, because the screen needs the logger plugin ztw; leave it out"
            )
        folder = Path("results") / study_name(arguments.config)
        with only_run(console):
            remove_scratch(folder)
            if "--touch" not in extra:
                check_known(folder)
            check_plugins(study)
            for runs in undelivered(folder):
                runs.unlink()  # Snakemake then logs the cell again
            if study.tracking == "sqlite" and (done := prepare(Layout(folder).database)):
                console.print(f"note: {done}", soft_wrap=True, markup=False)
            status = run_snakemake([*command, "--logger=ztw", *extra], folder, console)
        if status == 0:
            show_results(console, folder, study.tracking, arguments.config, study.evaluation.protocols[0])
    except (ZtwError, OSError) as error:
        console.print(f"[bold red]error:[/] {escape(describe(error))}", soft_wrap=True)
        return 1
    return status


def clear_environment() -> None:
    """Start this process again without the variables that could change results: Python has already read some of them.

    Then set PYTHONPATH, so that child processes import the ztw of this folder and no other.
    """
    if ignored := settings_of_others(os.environ):
        kept = {name: value for name, value in os.environ.items() if name not in ignored}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)
    os.environ["PYTHONPATH"] = search_path(str(HERE.parent.absolute()), os.environ)


def read_arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into this program's arguments and Snakemake's, which follow `--`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("config", nargs="?", default="config/quick.yaml")
    parser.add_argument("--cores", type=cores, default=usable_cores())
    parser.add_argument(
        "--profile", help="Snakemake profile whose executor runs the jobs: slurm, kubernetes or a folder"
    )
    split = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:split]), words[split + 1 :]


def cores(text: str) -> int:
    """Read a number of cores. Raises ArgumentTypeError for 0, with which Snakemake would wait forever."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number >= 1")
    return int(text)


def read_study(path: str) -> Study:
    """Read and check a study; raises ZtwError."""
    config = read_config(path)
    try:
        return check_study(config)
    except ZtwError as error:
        raise ZtwError(f"{path}: {error}") from error


def check_installation(tracking: str) -> None:
    """Raise ZtwError if Snakemake could not start jobs, or a package is missing that only the workflow needs."""
    if re.search(r"[^\w/.+@,=~%-]", sys.executable):  # Snakemake passes the path to a shell without quotes
        raise ZtwError(
            f"{sys.executable!r}: the path of this Python has a space or another character that shells treat specially;"
            " move it (.venv is in the folder of the Makefile)"
        )
    if set(missing("workflow")) - ({"mlflow"} if tracking == "none" else set()):
        need("the workflow", "workflow")


def check_plugins(study: Study) -> None:
    """Raise ZtwError, before any training, if a part of a plugin breaks its contract."""
    if study.plugins:
        from ztw.testing import check_registered  # imports torch

        check_registered()


def snakemake_command(arguments: argparse.Namespace, device: str) -> list[str]:
    """Build Snakemake's command line: for a profile's executor, or for the cores and GPUs of this machine."""
    # -P: import no module from the current folder
    command = [sys.executable, "-Pm", "snakemake", "--snakefile", str(HERE / "Snakefile")]
    command += ["--configfile", arguments.config]
    # With every profile, a changed setting runs a job again and a copied file does not
    command += ["--rerun-triggers", *TRIGGERS, "--max-checksum-file-size", "1GB"]
    if arguments.profile is not None:
        return [*command, "--workflow-profile", str(profile_folder(arguments.profile)), "--rerun-incomplete"]
    command += ["--workflow-profile", str(HERE / "profiles" / "default")]
    gpus = count_gpus(device)
    command += ["--resources", f"gpu={gpus}"] if gpus else []
    return [*command, "--cores", str(arguments.cores)]


def profile_folder(profile: str) -> Path:
    """Return the folder of a profile: the name of a profile of ztw, or any folder. Raises ZtwError if there is none."""
    ours = sorted(path.parent.name for path in HERE.glob("profiles/*/config.yaml"))
    folder = HERE / "profiles" / profile if profile in ours else Path(profile)
    if not any(folder.glob("config*.yaml")):
        raise ZtwError(
            f"PROFILE={profile}: is unknown; known: {', '.join(ours)}, or a folder with a config.yaml"
        )
    return folder


if __name__ == "__main__":
    sys.exit(main())
