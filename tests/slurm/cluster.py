"""Start a real Slurm with one node on this machine, with its daemons in a mount namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

CONF = """
ClusterName=ztw
SlurmctldHost=localhost
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=600
KillWait=20
AuthInfo=cred_expire=30
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Install Slurm if necessary; return why that is impossible, or None."""
    if os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    if "OWN_MOUNTS" not in os.environ:
        return "it needs a mount namespace of its own, which `make test-slurm` makes where it may"
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        if shutil.which("apt-get") is None:
            return "Slurm is not installed (slurm-wlm, munge), and there is no apt-get"
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        subprocess.run(["apt-get", "update"], check=False, capture_output=True)
        install = ["apt-get", "install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]
        if subprocess.run(install, check=False, capture_output=True).returncode:
            return "Slurm could not be installed (apt-get install slurm-wlm munge)"
    return None


class Cluster:
    """Slurm's daemons, with functions that stop and ask them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "etc").mkdir()
        cpus = len(os.sched_getaffinity(0))
        (folder / "etc/slurm.conf").write_text(CONF.format(folder=folder, cpus=cpus))
        Path("/etc/slurm").mkdir(exist_ok=True)
        # a bind mount, because the plugin's job step does not pass on SLURM_CONF
        subprocess.run(["mount", "--bind", str(folder / "etc"), "/etc/slurm"], check=True)
        subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "/run/munge"], check=True)
        subprocess.run(
            ["runuser", "-u", "munge", "--", "munged", "--force"], check=False, capture_output=True
        )
        self.start_controller()
        subprocess.run(["slurmd"], check=True)
        self.wait(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "no idle node")

    def start_controller(self) -> None:
        """Start slurmctld, at the beginning or after a kill."""
        subprocess.run(["slurmctld"], check=True)
        self.wait(lambda: "UP" in self.ask("scontrol", "ping"), "slurmctld does not answer")

    def kill_controller(self) -> None:
        """Kill slurmctld, as in a crash."""
        subprocess.run(["kill", "-9", (self.folder / "slurmctld.pid").read_text().strip()], check=True)

    def ask(self, *command: str) -> str:
        """Return the output of a command of Slurm; "" if it fails."""
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def jobs(self) -> list[str]:
        """Return the ids of unfinished jobs."""
        return self.ask("squeue", "-h", "-o", "%i", "-t", "PENDING,RUNNING,COMPLETING").split()

    def wait(self, true, what: str, seconds: float = 60) -> None:
        """Wait until `true()` is true; raise TimeoutError with `what` otherwise."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(what)
            time.sleep(0.2)

    def stop(self) -> None:
        """End the daemons and all jobs."""
        self.ask("scancel", "--user", "root")
        for name in ("slurmctld", "slurmd"):
            pid = self.folder / f"{name}.pid"
            if pid.exists():
                subprocess.run(["kill", pid.read_text().strip()], check=False)
        subprocess.run(["pkill", "-x", "munged"], check=False)
