"""Build the package without a network, install it in clean environments, and run the library's path there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ztw

ROOT = Path(__file__).parents[2]
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")


def run(*command: object, cwd: Path) -> str:
    """Run a command that must succeed, away from this checkout; return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "XDG_CACHE_HOME": str(cwd), "ZTW_DATA": str(cwd / "data")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    return run("git", "-C", ROOT, "ls-files", cwd=ROOT).splitlines()


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory) -> Path:
    """The wheel, built from the source distribution, as for an upload."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in tracked:
        if not name.startswith("results/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source, cwd=built)
    assert [path.name for path in built.glob("*.tar.gz")] == [f"ztw-{ztw.__version__}.tar.gz"]
    (found,) = built.glob("*.whl")
    assert found.name == f"ztw-{ztw.__version__}-py3-none-any.whl"
    return found


def test_the_wheel_has_all_of_ztw_and_nothing_else(wheel, tracked):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {name for name in tracked if name.startswith("ztw/")}
    assert {"ztw/py.typed", "ztw/__init__.pyi"} <= packed
    light = {"numpy", "pillow", "ptflops", "safetensors", "scipy", "torch", "torchvision", "typer"}
    assert {one.name for one in requirements(wheel)} == light


def requirements(wheel: Path, extra: str = "") -> list[Requirement]:
    """Return what the wheel needs, with an extra."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"ztw-{ztw.__version__}.dist-info/METADATA").decode()
    return taken(re.findall(r"^Requires-Dist: (.*)$", metadata, re.M), extra)


def taken(listed: list[str], extra: str) -> list[Requirement]:
    """Return the requirements that apply to this machine."""
    found = map(Requirement, listed)
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]


def installed(waiting: list[Requirement]) -> dict[str, Path]:
    """Return what pip would install for requirements: each top-level name, and its path in this environment."""
    found: dict[str, Path] = {}
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        package = distribution(wanted.name)
        tops = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}
        found |= {top: Path(str(package.locate_file(top))) for top in tops}
        for extra in {"", *wanted.extras}:
            if (wanted.name, extra) not in seen:
                seen.add((wanted.name, extra))
                waiting += taken(package.requires or [], extra)
    return found


def environment(folder: Path, wheel: Path, extra: str = "") -> Path:
    """Install the wheel in a new environment that has its dependencies, and nothing else; return its bin folder.

    The dependencies are links to this environment's, so that nothing is downloaded. pip checks that none is missing.
    """
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    for top, path in installed(requirements(wheel, extra)).items():
        if not (site / top).exists():
            (site / top).symlink_to(path)
    package = f"ztw[{extra}] @ {wheel.as_uri()}" if extra else wheel
    run(folder / "bin/python", "-m", "pip", "install", "--no-index", package, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory) -> Path:
    return environment(tmp_path_factory.mktemp("light") / "venv", wheel)


def test_the_library_and_the_command_run_with_its_light_dependencies(light, tmp_path):
    where = run(light / "python", "-c", "import ztw; print(ztw.__file__, ztw.__version__)", cwd=tmp_path)
    assert where.startswith(str(light.parent / "lib"))
    assert where.endswith(f" {ztw.__version__}\n")
    run(light / "python", ROOT / "tests/library_path.py", cwd=tmp_path)
    assert "Usage: ztw [OPTIONS] COMMAND" in run(light / "ztw", "--help", cwd=tmp_path)
    assert "1 image: " in run(light / "ztw", "predict", "image.png", "--network", "network", cwd=tmp_path)
    found = run(light / "ztw", "doctor", cwd=tmp_path)
    assert re.search(
        r"workflow: altair, matplotlib, mlflow, pandas, .* missing .*\n *-> pip install 'ztw\[wor", found
    )
    done = subprocess.run(
        [light / "ztw", "export", "network", "a.onnx"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "error: ONNX: the package onnx is not installed; pip install 'ztw[onnx]'\n"


def test_every_module_imports_or_needs_an_extra(light, tmp_path):
    """With an error that names a package of an extra."""
    code = """
import importlib, pkgutil, sys, ztw
from ztw.extras import extra_of
for module in pkgutil.walk_packages(ztw.__path__, 'ztw.'):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert extra_of(error.name.split('.')[0]), (module.name, error.name)
"""
    run(light / "python", "-c", code, cwd=tmp_path)


def test_the_example_of_the_readme_runs_with_onnx(wheel, tmp_path):
    found = environment(tmp_path / "venv", wheel, "onnx")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "example.py").write_text(example)
    run(found / "python", "example.py", cwd=tmp_path)


def python313() -> Path | None:
    """Return a Python 3.13 of this machine."""
    candidates = [shutil.which("python3.13"), *sorted(PYENV.glob("versions/3.13*/bin/python3.13"))]
    for candidate in candidates:
        if candidate is None:
            continue
        done = subprocess.run([candidate, "-c", "import venv"], capture_output=True)
        if done.returncode == 0:
            return Path(candidate)
    return None


def test_it_installs_in_python_313(wheel, tmp_path):
    """With its dependencies if this Python has them; else only what needs none."""
    python = python313()
    if python is None:
        pytest.skip("no Python 3.13")
    run(python, "-m", "venv", "--system-site-packages", tmp_path / "venv", cwd=tmp_path)
    own = tmp_path / "venv/bin/python"
    run(own, "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    run(own, "-W", "error", "-m", "compileall", "-q", "-f", site / "ztw", cwd=tmp_path)
    run(own, "-W", "error", "-c", "import ztw; assert 'predict' in dir(ztw)", cwd=tmp_path)
    if subprocess.run([own, "-m", "pip", "check"], capture_output=True).returncode == 0:
        run(own, ROOT / "tests/library_path.py", cwd=tmp_path)
        run(tmp_path / "venv/bin/ztw", "doctor", cwd=tmp_path)
