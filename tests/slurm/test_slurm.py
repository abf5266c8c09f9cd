"""Test studies on a real Slurm: equal results, and the cost of faults."""

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
BACKBONE = ("--", str(CELL / "backbone.safetensors"))  # other jobs mostly wait for Slurm


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    """The profile `slurm`, changed for a Slurm without accounting on a small machine."""
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
    """A running `make reproduce` in a folder."""

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
        """Return the backbone's completed epochs, from the log; 0 without a log."""
        text = self.training.read_text() if self.training.exists() else ""
        found = re.findall(r"^progress: .*epoch (\d+)/", text, re.M)
        return float(found[-1]) - 1 if found else 0.0

    def resumed(self) -> float:
        """Return the epoch at which the backbone's training was last resumed; 0 if it was not."""
        text = self.training.read_text() if self.training.exists() else ""
        found = re.findall(r"^progress: resumed at epoch ([\d.]+) of", text, re.M)
        return float(found[-1]) if found else 0.0

    def wait(self, true, what: str, seconds: float = 240) -> None:
        """Wait until `true()` is true; fail if the run ends before."""
        deadline = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, f"ended before {what}\n{self.output.read_text()}"
            assert time.monotonic() < deadline, f"not {what} in {seconds} s\n{self.output.read_text()}"
            time.sleep(0.2)

    def ended(self, seconds: float = 1200) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:  # stop the run, so that the next test has no other jobs
            self.process.send_signal(signal.SIGINT)
            self.process.wait(120)
            raise


def test_the_tables_equal_those_of_a_local_run_after_a_killed_controller(
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
        (folder / "tests").symlink_to(ROOT / "tests")  # the study's plugin is in tests/
    quick = yaml.safe_load((profile / "config.yaml").read_text())
    # Slurm checks times every 30 s. In the first try (one minute), the signal comes in the first 30 s, maybe before
    # Python handles it. In the second try (two minutes), it comes after 5 to 35 s. The training takes longer on any
    # machine, because every step waits. No try asks for more memory than the node has.
    signalled = {"runtime": "attempt", "mem_mb": 2500, "slurm_extra": "'--signal=TERM@85'"}
    quick["set-resources"]["train_backbone"] = signalled
    limited = tmp_path / "limited"
    limited.mkdir()
    (limited / "config.yaml").write_text(yaml.safe_dump(quick))
    run = Run(work, LONG, limited, *BACKBONE)

    run.wait(lambda: run.resumed() > 0, "resumed after its time was over")
    at = run.resumed()
    tell("over its time limit: SIGTERM, submitted again", f"nothing: resumed at epoch {at} of {EPOCHS}")

    run.wait(lambda: run.progress() > at, "an epoch after the resume")
    run.process.send_signal(signal.SIGINT)
    assert run.ended() == 130
    assert not cluster.jobs(), "nothing is left in squeue"
    assert "stopped; finished work is kept" in run.output.read_text()
    tell("Ctrl-C in the middle", "nothing left in squeue")

    run = Run(work, LONG, profile, *BACKBONE)
    run.wait(lambda: run.resumed() > at, "resumed by the same command")
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
