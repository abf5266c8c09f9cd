"""Test the digest of a job: it depends on all code that the job can run, and on nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ztw
from ztw.study import provenance
from ztw.study.provenance import code_digest, import_closure

ROOT = Path(__file__).parents[2]
PACKAGE = {
    "ztw/__init__.py": "from ztw.models import net\n",
    "ztw/version.py": "__version__ = '1'\n",
    "ztw/files.py": "def read():\n    '''Read.'''\n    return 1\n",
    "ztw/models/__init__.py": '"""Models."""\n',
    "ztw/models/net.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ztw import only_types\n",
    "ztw/only_types.py": "X = 1\n",
    "ztw/late.py": "Y = 1\n",
    "ztw/other.py": "Z = 1\n",
    "ztw/jobs/__init__.py": "",
    "ztw/jobs/run.py": "def run():\n    return 1\n",
    "ztw/study/__init__.py": "",
    "ztw/study/layout.py": "WEIGHTS = 'weights.safetensors'\n",
    "workflow/scripts/train.py": "from ztw.jobs.train import train\ntrain()\n",
    "ztw/jobs/shared.py": "from ztw import files\nkey('what it means', 3)\n",
    "ztw/jobs/train.py": (
        "from ztw.version import __version__\n"
        "from .shared import key\n"
        "def train():\n"
        "    from ztw.models import net\n"
        "    import ztw.late\n"
        "    from ztw.study.layout import WEIGHTS\n"
    ),
}


@pytest.fixture
def package(tmp_path):
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def edited(package: Path, name: str, text: str) -> bool:
    """Return whether an edit changes the digest of the job `train`."""
    before = code_digest("train", package)
    (package / name).write_text(text)
    provenance._tree.cache_clear()
    return code_digest("train", package) != before


def test_the_closure_follows_every_import_that_runs(package):
    assert import_closure("ztw.jobs.train", package) == [
        "ztw.files",
        "ztw.jobs",
        "ztw.jobs.shared",
        "ztw.jobs.train",
        "ztw.late",
        "ztw.models",
        "ztw.models.net",
    ]


@pytest.mark.parametrize(
    ("name", "text", "counts"),
    [
        ("ztw/files.py", "def read():\n    return 2\n", True),
        ("ztw/late.py", "Y = 2\n", True),
        ("ztw/models/__init__.py", "X = 1\n", True),
        ("ztw/jobs/shared.py", "from ztw import files\nkey('what it means', 4)\n", True),
        ("workflow/scripts/train.py", "from ztw.jobs.train import train\ntrain(2)\n", True),
        ("workflow/scripts/train.py", "from ztw.jobs.train import train\n# why\ntrain()\n", False),
        ("workflow/scripts/other.py", "Z = 2\n", False),
        ("ztw/other.py", "Z = 2\n", False),
        ("ztw/only_types.py", "X = 2\n", False),
        ("ztw/version.py", "__version__ = '2'\n", False),
        ("ztw/study/layout.py", "WEIGHTS = 'elsewhere.safetensors'\n", False),
        ("ztw/jobs/run.py", "def run():\n    return 2\n", True),
        ("ztw/files.py", "# why\ndef read():\n    '''Read a file.'''\n\n    return 1  # always\n", False),
        ("ztw/jobs/shared.py", "from ztw import files\nkey('in other words', 3)\n", False),
        ("ztw/models/__init__.py", '"""All models."""\n', False),
    ],
)
def test_edits_that_change_the_digest(package, name, text, counts):
    assert edited(package, name, text) == counts


def test_a_job_that_is_not_there_is_named(package):
    with pytest.raises(ztw.ZtwError, match=r"module ztw\.jobs\.fly is missing"):
        code_digest("fly", package)


def test_the_real_jobs_depend_on_what_they_compute_with():
    """The layers of the package keep digests small."""
    predict, fit, train = (
        import_closure(f"ztw.jobs.{job}") for job in ("predict", "fit_ensembles", "train_ics")
    )
    assert {"ztw.models.heads", "ztw.data.splits", "ztw.evaluation.predictions"} <= set(predict)
    assert {"ztw.exits.ensembles", "ztw.exits.objectives", "ztw.exits.logits"} <= set(fit)
    assert not any(name.startswith(("ztw.data", "ztw.reporting", "ztw.training")) for name in fit)
    for closure in (predict, fit, train):
        assert not any(name.startswith("ztw.reporting") for name in closure)


def test_every_rule_has_the_digest_of_its_own_job():
    rules = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    blocks = re.split(r"^ *rule (\w+):$", rules, flags=re.M)[1:]
    texts = zip(blocks[::2], blocks[1::2], strict=True)
    found = {name: re.findall(r'code=code_digest\("(\w+)"\)', text) for name, text in texts}
    assert found == {name: [name] for name in found}
    assert found.keys() == {path.stem for path in (ROOT / "workflow/scripts").glob("*.py")}
