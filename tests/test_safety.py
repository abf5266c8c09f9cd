"""Test that foreign files, names and studies cannot harm the machine."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_study

import ztw
from ztw.catalogue.datasets import DATASETS
from ztw.study.config import check_study, read_config, study_name

ROOT = Path(__file__).parent.parent

DANGEROUS = """
eval(text)
exec(text)
pickle.load(file)
pd.read_pickle(file)
import joblib
torch.load(file)
torch.hub.load(file)
np.load(file, allow_pickle=True)
yaml.load(file, yaml.Loader)
yaml.load(file)
yaml.full_load(file)
os.system(text)
os.popen(text)
subprocess.getoutput(text)
subprocess.run(text, shell=True)
tar.extractall(folder)
shutil.unpack_archive(file)
listen("0.0.0.0")
"""


def test_lint_finds_dangerous_code(tmp_path):
    """Also code that unpacks an archive unchecked, or listens to other machines."""
    imports = "import os, pickle, shutil, subprocess, tarfile; import numpy as np, pandas as pd, torch, yaml"
    (tmp_path / "module.py").write_text(imports + DANGEROUS)
    command: list[str | Path] = [
        "ruff",
        "check",
        "--no-cache",
        "--config",
        ROOT / "pyproject.toml",
        "--output-format",
        "json",
    ]
    done = subprocess.run([*command, tmp_path / "module.py"], capture_output=True, text=True)
    found = json.loads(done.stdout)
    rows = {one["location"]["row"] for one in found if re.match("S|TID", one["code"])}
    assert [line for row, line in enumerate(DANGEROUS.splitlines(), 1) if line and row not in rows] == []


@pytest.mark.parametrize("value", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.system ''"])
def test_a_study_runs_no_code(tmp_path, value):
    path = tmp_path / "study.yaml"
    path.write_text(f"datasets: {value.format(tmp_path / 'ran')}\n")
    with pytest.raises(ztw.ZtwError, match="could not determine a constructor"):
        read_config(path)
    assert not (tmp_path / "ran").exists()


def test_aliases_that_make_a_small_study_huge_are_refused_at_once(tmp_path):
    """Nine nested lists of nine aliases would have 400 million values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    for text in ("\n".join(lines), "a: &a [*a]", "a: &a {b: *a}"):
        (tmp_path / "study.yaml").write_text(text)
        with pytest.raises(ztw.ZtwError, match=r"study.yaml': has more than 100,000 values"):
            read_config(tmp_path / "study.yaml")


STRANGE = [
    "my study",
    "a'b",
    'a"b',
    "a\nb",
    "-n",
    "$(touch x)",
    "`x`",
    "a;b",
    "{seed}",
    "a{b",
    ".hidden",
    "é",
    "a*",
]


@pytest.mark.parametrize("name", [*STRANGE, ""])
def test_a_study_s_name_is_plain_or_refused_in_one_line(name):
    with pytest.raises(ztw.ZtwError, match="rename the file with letters, digits") as caught:
        study_name(f"config/{name}.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["quick", "cifar10-v1.2", "2024_run", "_a"])
def test_a_plain_name_is_accepted(name):
    assert study_name(f"/some where/{name}.yaml") == name


@pytest.mark.parametrize("name", [name for name in STRANGE if name != "-n"])  # -n is harmless within a path
def test_names_in_a_study_are_plain_or_refused(name):
    """Such names become file names, wildcards and columns."""
    study = {
        "datasets": ["digits"],
        "archs": ["resnet8"],
        "seeds": [0],
        "backbone": {"epochs": 1},
        "ics": {"epochs": 1, "sets": {"a": {"connection": "cascade"}}},
        "methods": {"m": {"ics": "a", "rule": "entropy"}},
    }
    check_study(study)
    folder = {"path": "x", "size": 8}
    for change in (
        {"methods": {name: study["methods"]["m"]}},  # type: ignore[index]
        {"ics": {"epochs": 1, "sets": {name: {"connection": "cascade"}}}},
        {"ensembles": {"sets": {name: {"kind": "uniform"}}}},
        {"data": {"image_folders": {name: folder}}, "datasets": [name]},
        {"datasets": [name]},
        {"archs": [name]},
    ):
        with pytest.raises(ztw.ZtwError) as caught:
            check_study({**study, **change})
        assert "\n" not in str(caught.value)


def test_a_strange_config_ends_in_one_line(tmp_path):
    for name in ("my study", "-n", "{seed}"):
        (tmp_path / f"{name}.yaml").write_text(tiny_study.TINY.read_text())
        failed = tiny_study.run(tmp_path, Path(f"{name}.yaml"))
        assert failed.returncode != 0
        assert len((failed.stdout + failed.stderr).strip().splitlines()) == 1, failed.stdout + failed.stderr
    assert not (tmp_path / "results").exists()


def made(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make` in a folder with the Makefile and a stub of Python that prints its arguments."""
    stub = folder / ".venv/bin/python"
    stub.parent.mkdir(parents=True, exist_ok=True)
    stub.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    stub.chmod(0o755)
    shutil.copy(stub, stub.with_name("mlflow"))
    for name in ("requirements.lock", "tools.lock", ".venv/.ready"):
        (folder / name).touch()
    shutil.copy(ROOT / "Makefile", folder)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=plain)


@pytest.mark.parametrize("name", ["a b", "a\tb", "a'b", 'a"b', "a$b", "a;b", "a:b", "a(b", "a`b", "a\\b"])
def test_a_folder_whose_name_a_shell_would_split_is_refused_in_one_line(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    refused = made(folder, "-n", "reproduce")
    assert refused.returncode == 2
    assert "the path of this folder has a space or another character" in refused.stderr
    assert len((refused.stdout + refused.stderr).strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["plain", "a-b_c.d+e@f,g=h~i%j", "é"])
def test_other_folders_are_accepted(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    assert made(folder, "-n", "reproduce").returncode == 0


@pytest.mark.parametrize(
    "config", ["my dir/a b.yaml", "a'b", 'a"b', "x;touch ran", "`touch ran`", "-n", "a\nb", "*"]
)
def test_make_passes_config_on_unchanged(tmp_path, config):
    done = made(tmp_path, "reproduce", f"CONFIG={config}", f"CORES={config}")
    assert done.stdout == f"<workflow/reproduce.py><{config}><--cores><{config}>", done.stderr
    shown = made(tmp_path, "ui", f"CONFIG={config}", "PORT=1;touch ran")
    assert shown.stdout.startswith("<workflow/ui.py><results/")
    assert shown.stdout.endswith("><1;touch ran>")
    assert not (tmp_path / "ran").exists()


def test_a_python_whose_path_a_shell_would_split_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [folder / "python", *tiny_study.command()[1:]]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (refused.returncode, refused.stderr) == (1, "")
    assert "a b/python': the path of this Python has a space" in refused.stdout
    assert len(refused.stdout.strip().splitlines()) == 1


def test_every_built_in_source_is_https_and_checked_by_its_sha_256():
    downloaded = {name: facts for name, facts in DATASETS.items() if facts.url}
    assert len(downloaded) == 5
    for name, facts in downloaded.items():
        assert str(facts.url).startswith("https://"), name
        sums = [*(facts.files or {}).values(), *([facts.archive_sha256] if facts.archive else [])]
        assert sums, name
        assert all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in sums), name


def test_servers_listen_on_this_machine_alone(tmp_path, monkeypatch):
    """Unless HOST is in the command: the environment variable HOST is ignored, because shells set it."""
    monkeypatch.setenv("HOST", "0.0.0.0")
    assert "<--host><127.0.0.1>" in made(tmp_path, "mlflow-server").stdout
    assert '"--host", "127.0.0.1", "--port", port' in (ROOT / "workflow/ui.py").read_text()


TELEMETRY = """
import socket, sys
def refuse(*args, **options):
    sys.exit(f"connects to {args}")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import ztw.reporting.tracking
from mlflow.telemetry.client import get_telemetry_client
sys.exit(f"telemetry: {get_telemetry_client()}" if get_telemetry_client() is not None else 0)
"""


def test_mlflow_s_telemetry_is_off_before_mlflow_is_imported():
    """Also if the environment switches telemetry on."""
    known = (
        "CI",
        "PYTEST_CURRENT_TEST",
        "MLFLOW_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
    )  # these variables switch telemetry off anyway
    plain = {key: value for key, value in os.environ.items() if key not in known}
    on = {**plain, "MLFLOW_DISABLE_TELEMETRY": "false"}
    done = subprocess.run([sys.executable, "-c", TELEMETRY], env=on, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("said", "status", "shown"),
    [
        (
            {"dependencies": [{"name": "a", "version": "1", "vulns": []}]},
            0,
            ["audit: 0 of 1 packages have known vulnerabilities"],
        ),
        (
            {
                "dependencies": [
                    {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2", "3"]}]},
                    {"name": "b", "version": "1", "vulns": []},
                    {"name": "c", "skip_reason": "not found"},
                ]
            },
            1,
            [
                "a 1: CVE-1, fixed in 2, 3",
                "audit: 1 of 2 packages have known vulnerabilities, 1 unknown to the service",
            ],
        ),
        (
            {"dependencies": [{"name": "a", "skip_reason": "not found"}]},
            2,
            ["audit: not done, the advisories cannot be reached from here (1 packages)"],
        ),
        ("no JSON", 2, ["audit: not done, pip-audit cannot be installed or reach its service (no message)"]),
    ],
)
def test_a_failed_audit_is_an_error(tmp_path, capsys, said, status, shown):
    """pip-audit itself exits with 0 if the service knows no package."""
    (tmp_path / "stub.py").write_text(f"print({json.dumps(said)!r})")
    audit = runpy.run_path(str(ROOT / ".ci/audit.py"))
    assert audit["main"](["requirements.lock"], [sys.executable, str(tmp_path / "stub.py")]) == status
    assert capsys.readouterr().out.splitlines() == shown


def test_help_lists_every_target(tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    targets = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    shown = made(tmp_path).stdout  # `make` alone
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and "=" not in line]
    assert sorted(listed) == sorted(targets)
