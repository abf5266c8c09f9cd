"""Test which environment variables reach the jobs of a study."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tiny_study import ROOT, TINY, run, shown

from ztw.study.environment import search_path, settings_of_others

REMOVED = (
    *("SNAKEMAKE_PROFILE", "MATPLOTLIBRC", "MPLBACKEND", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT"),
    *("NVIDIA_TF32_OVERRIDE", "GIT_DIR", "MLFLOW_ENABLE_ASYNC_LOGGING", "MLFLOW_TRUNCATE_LONG_VALUES"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"),
)
KEPT = (
    *(
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_INSECURE_TLS",
        "MLFLOW_WORKSPACE",
    ),
    *("MLFLOW_S3_ENDPOINT_URL", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_MYSQL_SSL_CA", "AWS_ACCESS_KEY_ID"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "ZTW_DATA"),
)


def test_settings_of_other_work_are_found():
    assert settings_of_others((*REMOVED, *KEPT)) == set(REMOVED)


@pytest.mark.parametrize(
    ("given", "others", "expected"),
    [
        (None, True, ["/ztw"]),
        ("", True, ["/ztw"]),
        (f"/mine{os.pathsep}/ztw", True, ["/ztw", "/mine"]),
        ("/mine", False, ["/ztw"]),
    ],
)
def test_ztw_comes_first_on_the_path(given, others, expected):
    environment = {} if given is None else {"PYTHONPATH": given}
    assert search_path("/ztw", environment, others).split(os.pathsep) == expected


@pytest.fixture
def hostile(monkeypatch):
    for name in (*REMOVED, "PYTHONDEVMODE"):
        monkeypatch.setenv(name, "error" if name == "PYTHONWARNINGS" else "1")


@pytest.fixture
def telling(tmp_path):
    """A study whose plugin reports the environment."""
    (tmp_path / "own.py").write_text(
        "import os, sys\n"
        "from ztw.study.environment import settings_of_others\n"
        "raise ValueError(f'{sorted(settings_of_others(os.environ))} {sys.flags.optimize} {sys.warnoptions}')\n"
    )
    (tmp_path / "tiny.yaml").write_text(f"plugins: [own.py]\n{TINY.read_text()}")
    return tmp_path / "tiny.yaml"


@pytest.mark.usefixtures("hostile", "data_root")
def test_a_run_starts_without_such_variables(telling):
    """Also the process of `reproduce` itself, in which Python has already read some variables."""
    done = run(telling.parent, telling)
    assert "ValueError: [] 0 []" in done.stdout, shown(done)


@pytest.mark.usefixtures("hostile", "data_root")
def test_jobs_start_without_such_variables(telling, monkeypatch):
    """On a node of a cluster, the executor starts Snakemake."""
    for name in ("SNAKEMAKE_PROFILE", "PYTHONWARNINGS", "PYTHONDEVMODE"):  # Snakemake itself has read them
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    asked = [*command, "--configfile", telling.name, "--list"]
    done = subprocess.run(asked, cwd=telling.parent, capture_output=True, text=True, timeout=100)
    assert "ValueError: [] " in done.stderr, shown(done)


@pytest.mark.usefixtures("data_root")
def test_a_run_imports_the_ztw_beside_it(tmp_path, monkeypatch):
    """If jobs imported another ztw, digests would be of code that does not run."""
    for place in (tmp_path, tmp_path / "elsewhere"):
        (place / "ztw").mkdir(parents=True)
        (place / "ztw/__init__.py").write_text("raise ImportError('another ztw')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    done = run(tmp_path, TINY, "--", "--list")
    assert done.returncode == 0, shown(done)
    assert "train_backbone" in done.stdout


DATASET = """
import ztw
from images_of_mine import draw
@ztw.register("dataset", "mine", num_classes=2, size=8, channels=1)
def mine():
    return {"train": draw(40), "test": draw(20)}
"""
HELPER = (
    "import torch\ndef draw(n):\n    return torch.zeros(n, 1, 8, 8, dtype=torch.uint8), torch.arange(n) % 2\n"
)


@pytest.mark.usefixtures("data_root")
def test_a_plugin_s_helper_on_the_path_is_there_in_jobs_too(tmp_path, monkeypatch):
    for name, text in (("own.py", DATASET), ("lib/images_of_mine.py", HELPER)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    study = TINY.read_text().replace("[digits]", "[mine]")
    (tmp_path / "tiny.yaml").write_text(f"plugins: [own.py]\n{study}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    record = "results/tiny/data/mine/test.json"
    done = run(tmp_path, tmp_path / "tiny.yaml", "--", record)
    assert (tmp_path / record).exists(), shown(done)
