"""Test several GPUs on one machine, with stubs: the number of parallel jobs, and the GPU of each job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_study

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "workflow"))
from machine import count_gpus  # noqa: E402


@pytest.fixture
def four_gpus(tmp_path, monkeypatch):
    """A stub of nvidia-smi that lists four GPUs, one of them divided (MIG)."""
    smi = tmp_path / "nvidia-smi"
    lines = [f"GPU {n}: NVIDIA A100 (UUID: GPU-{n})" for n in range(4)] + [
        "  MIG 1g.5gb Device 0: (UUID: MIG-1)"
    ]
    smi.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return smi


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        *[(None, 4), ("0,1", 2), ("3", 1), ("GPU-1, GPU-2", 2), ("", 0), ("-1", 0), ("0,-1,1", 1)],
        *[("NoDevFiles,", 1), ("0,1,2,3,4,5", 4)],
    ],
)
def test_visible_gpus_are_counted(four_gpus, monkeypatch, visible, expected):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus("auto") == count_gpus("cuda") == expected


@pytest.mark.usefixtures("four_gpus")
def test_a_study_that_names_its_device_has_one_or_none():
    assert (count_gpus("cpu"), count_gpus("cuda:2"), count_gpus("cuda:0")) == (0, 1, 1)


def test_no_gpus_without_nvidia_smi(four_gpus, monkeypatch):
    four_gpus.write_text("#!/bin/sh\necho no driver; exit 9\n")
    assert count_gpus("auto") == 0
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert count_gpus("auto") == 0


def test_counting_imports_no_torch():
    path = f"import sys; sys.path[:0] = [{str(ROOT / 'workflow')!r}, {str(ROOT)!r}]; "
    code = f"{path} import machine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


RULES = """
rule all:
    default_target: True
    input: expand("{n}.done", n=range(8))
    localrule: True
rule train:
    output: touch("{n}.done")
    resources: gpu=1
    script: "train.py"
"""
# A stub of torch, of which only the list of devices is used
STUB = """
import sys, types
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(device_count=lambda: {count})
torch.device = str
from ztw.device import own_gpu
"""
TRAIN = """
import time
from pathlib import Path
mine = own_gpu("auto")
held = Path(f"held-{mine}")
held.mkdir()  # fails where another job has the same GPU
time.sleep(0.5)
held.rmdir()
with open("log", "a") as log:
    log.write(f"{mine}\\n")
"""


def test_jobs_are_spread_over_the_gpus_and_no_gpu_has_two(tmp_path, monkeypatch):
    """Eight jobs on three GPUs through Snakemake, with the limit that `reproduce` passes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "Snakefile").write_text(RULES)
    (tmp_path / "train.py").write_text(STUB.format(count=3) + TRAIN)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "snakemake", "--cores", "8", "--resources", "gpu=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    used = (tmp_path / "log").read_text().split()
    assert len(used) == 8
    assert set(used) == {"cuda:0", "cuda:1", "cuda:2"}


HOLD = """
print(own_gpu(sys.argv[1]), own_gpu(sys.argv[1]), flush=True)
sys.stdin.readline()
"""


def holding(count: int, device: str, **environment: str) -> subprocess.Popen[str]:
    """Start a job that holds its GPU until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", STUB.format(count=count) + HOLD, device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def answer_of(job: subprocess.Popen[str]) -> list[str]:
    assert job.stdout is not None
    return job.stdout.readline().split()


def test_a_gpu_is_free_again_when_its_job_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with holding(2, "auto") as first, holding(2, "cuda") as second:
        taken = answer_of(first), answer_of(second)
        assert sorted(taken) == [["cuda:0", "cuda:0"], ["cuda:1", "cuda:1"]], "and a job keeps the one it has"
        with holding(2, "auto") as third:
            assert answer_of(third)[0] in ("cuda:0", "cuda:1"), "with none free they share"
            third.communicate("")
        first.kill()
        first.wait()
        with holding(2, "auto") as fourth:
            assert answer_of(fourth) == taken[0]
            fourth.communicate("")
        second.communicate("")


@pytest.mark.parametrize(
    ("count", "device"), [(0, "auto"), (1, "auto"), (4, "cpu"), (4, "cuda:3"), (1, "cuda")]
)
def test_a_device_without_a_choice_is_returned_unchanged(tmp_path, monkeypatch, count, device):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with holding(count, device) as job:
        assert answer_of(job) == [device, device]
        job.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_is_identified_by_its_name_not_its_index(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with holding(2, "auto", CUDA_VISIBLE_DEVICES="4,5") as first:
        assert answer_of(first)[0] == "cuda:0", "which is GPU 4"
        with holding(2, "auto", CUDA_VISIBLE_DEVICES="5,4") as second:
            assert answer_of(second)[0] == "cuda:0", "which is GPU 5"
            with holding(3, "auto", CUDA_VISIBLE_DEVICES="4,5,6") as third:
                assert answer_of(third)[0] == "cuda:2"
                third.communicate("")
            second.communicate("")
        first.communicate("")


def test_without_locks_jobs_still_compute(tmp_path, monkeypatch):
    (tmp_path / f"ztw-gpus-{os.getuid()}").write_text("no folder")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with holding(2, "auto") as job:
        assert answer_of(job)[0] in ("cuda:0", "cuda:1")
        job.communicate("")


def test_reproduce_passes_on_the_number_of_gpus(four_gpus, tmp_path, monkeypatch):
    """Two of the four GPUs are visible. A stub of Snakemake prints its arguments."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (tmp_path / "stub/snakemake").mkdir(parents=True)
    (tmp_path / "stub/snakemake/__init__.py").touch()
    (tmp_path / "stub/snakemake/__main__.py").write_text("import sys; print(sys.argv[1:])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
    on_gpus = tiny_study.changed_config(tmp_path, device="auto")
    assert (
        "'--resources', 'gpu=2', '--cores', '2', '-n'" in tiny_study.run(tmp_path, on_gpus, "--", "-n").stdout
    )
    on_cpu = tiny_study.changed_config(tmp_path, device="cpu")
    assert "--resources" not in tiny_study.run(tmp_path, on_cpu, "--", "-n").stdout
