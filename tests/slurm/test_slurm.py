"""The studies of the tests through a real Slurm: what it computes, and what its faults cost."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_study import ROOT, TINY, tables

from ztw.tensors import read_tensors

LONG = ROOT / "tests/config/long.yaml"
EPOCHS = yaml.safe_load(LONG.read_text())["backbone"]["epochs"]
CELL = Path("results/long/digits/unhurried/seed0")
BACKBONE = ("--", str(CELL / "backbone.safetensors"))  # what is left of the study waits for Slurm, mostly


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    """Our profile for a Slurm without accounting, on a machine this small."""
    text = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    text |= {
        "slurm-status-command": "squeue",
        "slurm-init-seconds-before-status-checks": 2,
        "latency-wait": 10,
    }
    text["set-threads"] = dict.fromkeys(text["set-threads"], 1)
    text["set-resources"] = {"measure_latency": {"slurm_extra": "''"}}
    folder = tmp_path_factory.mktemp("profile")
    (folder / "config.yaml").write_text(yaml.safe_dump(text))
    return folder


def command(config: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "workflow/reproduce.py"), str(config), *options]


class Run:
    """A `make reproduce` at work in a folder."""

    def __init__(self, folder: Path, config: Path, profile: Path, *targets: str) -> None:
        self.folder, self.config = folder, config
        self.output = folder / "output.txt"
        with self.output.open("a") as stream:
            self.process = subprocess.Popen(
                command(config, "--profile", str(profile), *targets),
                cwd=folder,
                stdout=stream,
                stderr=stream,
            )

    @property
    def training(self) -> Path:
        return self.folder / "results/long/logs/train_backbone/digits-unhurried-seed0.log"

    def progress(self) -> float:
        """Epochs of the backbone that are done, as its log says; 0 where there is none."""
        text = self.training.read_text() if self.training.exists() else ""
        found = re.findall(r"^progress: .*epoch (\d+)/", text, re.M)
        return float(found[-1]) - 1 if found else 0.0

    def resumed(self) -> float:
        """The epoch at which the backbone's training was gone on with; 0 where it was not."""
        text = self.training.read_text() if self.training.exists() else ""
        found = re.findall(r"^progress: resumed at epoch ([\d.]+) of", text, re.M)
        return float(found[-1]) if found else 0.0

    def wait(self, true, what: str, seconds: float = 240) -> None:
        """Until something is true while the run goes on."""
        deadline = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, f"ended before {what}\n{self.output.read_text()}"
            assert time.monotonic() < deadline, f"not {what} in {seconds} s\n{self.output.read_text()}"
            time.sleep(0.2)

    def ended(self, seconds: float = 1200) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:  # leave no jobs to the next test
            self.process.send_signal(signal.SIGINT)
            self.process.wait(120)
            raise


def test_the_tables_are_those_of_a_local_run_though_the_controller_dies(
    cluster, profile, finished, tmp_path, tell
):
    run = Run(tmp_path, TINY, profile)
    run.wait((tmp_path / "results/tiny/digits/resnet8/seed0/backbone.json").exists, "a backbone was trained")
    cluster.kill_controller()
    time.sleep(5)
    cluster.start_controller()
    assert run.ended() == 0, run.output.read_text()
    assert tables(tmp_path) == tables(finished), "byte for byte"
    assert not cluster.jobs()
    tell(
        "the tiny study through sbatch, slurmctld killed and started again in the middle",
        "nothing: same tables",
    )


def test_no_fault_costs_more_than_the_work_since_the_last_checkpoint(cluster, profile, tmp_path, tell):
    alone = tmp_path / "alone"
    work = tmp_path / "work"
    for folder in (alone, work):
        folder.mkdir()
        (folder / "tests").symlink_to(ROOT / "tests")  # where the study looks for its backbone
    quick = yaml.safe_load((profile / "config.yaml").read_text())
    # Slurm looks every 30 s: the signal comes in a job's first 30 s, which may be before Python listens, and in those
    # of the second try, of two minutes, after 5 to 35 s: the training takes longer on any machine, as it waits in
    # every step. No try asks for more memory than the node has.
    signalled = {"runtime": "attempt", "mem_mb": 2500, "slurm_extra": "'--signal=TERM@85'"}
    quick["set-resources"]["train_backbone"] = signalled
    limited = tmp_path / "limited"
    limited.mkdir()
    (limited / "config.yaml").write_text(yaml.safe_dump(quick))
    run = Run(work, LONG, limited, *BACKBONE)

    run.wait(lambda: run.resumed() > 0, "resumed after its time was over")
    at = run.resumed()
    tell("over its time limit: SIGTERM, submitted again", f"nothing: resumed at epoch {at} of {EPOCHS}")

    run.wait(lambda: run.progress() > at, "going on")
    run.process.send_signal(signal.SIGINT)
    assert run.ended() == 130
    assert not cluster.jobs(), "nothing is left in squeue"
    assert "stopped; finished work is kept" in run.output.read_text()
    tell("Ctrl-C in the middle", "nothing left in squeue")

    run = Run(work, LONG, profile, *BACKBONE)
    run.wait(lambda: run.resumed() > at, "gone on with by the same command")
    at = run.resumed()
    tell("the same command again", f"nothing: resumed at epoch {at} of {EPOCHS}")
    run.wait(lambda: run.progress() > at + 3, "going on")
    (job,) = cluster.jobs()
    cluster.ask("scancel", job)
    run.wait(lambda: run.resumed() > at, "resumed after scancel")
    at = run.resumed()
    tell("scancel of a training", f"nothing: resumed at epoch {at} of {EPOCHS}")

    run.wait(lambda: run.progress() > at + 3, "going on")
    reached = run.progress()
    cluster.ask("scontrol", "update", "nodename=localhost", "state=down", "reason=test")
    time.sleep(5)
    cluster.ask("scontrol", "update", "nodename=localhost", "state=resume")
    assert run.ended() == 0, run.output.read_text()
    last = run.resumed()
    tell(
        "a node set DOWN while it trained",
        f"{max(0.0, reached - last):.1f} epochs: resumed at epoch {last} of {EPOCHS}",
    )
    assert not (work / CELL / "checkpoints").exists()

    shutil.copytree(tmp_path / "work/results/long/data", alone / "results/long/data")
    done = subprocess.run(
        command(LONG, "--cores", "1", *BACKBONE),
        cwd=alone,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    disturbed, undisturbed = (read_tensors(f / CELL / "backbone.safetensors") for f in (work, alone))
    assert all(disturbed[name].equal(undisturbed[name]) for name in undisturbed), "bit for bit"
    tell("all of these together", "nothing: weights bit for bit those of an undisturbed local run")
