"""Plugins: loaded once, told in one line when they are at fault, seen by the jobs that can depend on them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import ztw
from ztw.exits.rules import exit_rule
from ztw.files import sha256
from ztw.models.checkpoints import versions
from ztw.study.config import check_study
from ztw.study.parts import PARTS, forget
from ztw.study.plugins import load_plugins, plugins_with

ROOT = Path(__file__).parents[2]
TINY = yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text())
MARGIN = (ROOT / "examples/my_parts.py").read_text()
HEAD = """
import ztw
@ztw.register("head", "own")
def own(shape, classes, previous, size, options):
    return ztw.HEADS["pool"](shape, classes, previous, size, options)
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def plugin(text: str, name: str = "own.py") -> str:
    Path(name).write_text(text)
    return name


def study(**changes) -> dict:
    return {**TINY, **changes}


def test_the_parts_of_a_plugin_are_named_like_the_built_in_ones():
    methods = {"own": {"ics": "independent", "ensemble": "median", "rule": "margin"}}
    found = check_study(study(plugins=[plugin(MARGIN)], methods=methods))
    assert found.ensembles.sets["median"].kind == "median"
    assert list(ztw.RULES)[-1] == "margin"
    forget()
    assert "margin" not in ztw.RULES
    with pytest.raises(ztw.ZtwError, match=r"'margin' is unknown; known: max_softmax, .*, patience$"):
        check_study(study(methods={"own": {"ics": "independent", "rule": "margin"}}))


def test_an_error_names_them_too():
    methods = {"own": {"ics": "independent", "rule": "margn"}}
    expected = r"^methods.own.rule: 'margn' is unknown; known: max_softmax, .*, patience, margin; did you mean margin"
    with pytest.raises(ztw.ZtwError, match=expected):
        check_study(study(plugins=[plugin(MARGIN)], methods=methods))
    with pytest.raises(ztw.ZtwError, match=r"unknown exit rule 'margn'; known: .*, margin$"):
        exit_rule("margn")


def test_a_rule_without_a_threshold_says_so_itself():
    text = 'import ztw\n@ztw.register("rule", "wait")\nclass Wait(ztw.Patience):\n    pass\n'
    methods = {"own": {"ics": "independent", "rule": "wait"}}
    check_study(study(plugins=[plugin(text)], methods=methods))
    methods["own"]["thresholds"] = "per_exit"
    with pytest.raises(ztw.ZtwError, match="the rule wait has no threshold; leave it out"):
        check_study(study(plugins=["own.py"], methods=methods))


def test_a_backbone_says_how_many_blocks_it_has():
    text = (
        "import ztw\n"
        '@ztw.register("backbone", "mine", blocks=2, smallest_image=16)\n'
        "def mine(name, classes, channels, size, options):\n    ...\n"
    )
    given = study(plugins=[plugin(text)], archs=["mine"], evaluation={})
    with pytest.raises(ztw.ZtwError, match="'mine' needs images of at least 16 pixels a side, digits has 8"):
        check_study(given)
    given["data"] = {"image_folders": {"big": {"path": "x", "size": 16}}}
    given |= {"datasets": ["big"], "ics": {**TINY["ics"], "placement": [2]}}
    with pytest.raises(ztw.ZtwError, match=r"placement: 2: mine has blocks 0..1"):
        check_study(given)


FAULTS = [
    ("x = 1\nimport nothing_there\n", "line 2: ModuleNotFoundError: No module named 'nothing_there'"),
    ("x = 1\n\ny = 1 +\n", "line 3: SyntaxError: invalid syntax"),
    ("x = 1\n", ": registers nothing; call ztw.register(kind, name, part)"),
    ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
    (f"{MARGIN}\nraise ValueError('two\\nlines')\n", "ValueError: two lines"),
    (MARGIN.replace('"margin"', '"entropy"'), "line 8: rule 'entropy': is the name of a built-in one"),
    (MARGIN.replace('"rule"', '"rul"'), "line 8: unknown kind of part 'rul'; known: rule, ensemble, head"),
    (MARGIN.replace("def worst", "def worse"), "line 8: rule 'margin': Margin lacks worst"),
    (MARGIN.replace("    top = 1.0", "    tops = 1.0"), "line 8: rule 'margin': Margin lacks top"),
    (MARGIN.replace("ztw.Ensemble", "ztw.ThresholdRule"), "must be a class derived from ztw.Ensemble"),
    (
        MARGIN.replace('"median"', '"my median"'),
        "ensemble 'my median': a name has letters, digits, _ and - only",
    ),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_a_fault_is_one_line_with_its_place(text, message):
    with pytest.raises(ztw.ZtwError, match=f"^plugins: 'own.py'.*{re.escape(message)}") as caught:
        check_study(study(plugins=[plugin(text)]))
    assert "\n" not in str(caught.value)
    assert not PARTS
    assert "margin" not in ztw.RULES


def test_a_missing_file_and_an_unknown_package_are_named():
    with pytest.raises(ztw.ZtwError, match=r"^plugins: 'gone.py': No such file or directory$"):
        check_study(study(plugins=["gone.py"]))
    expected = r"^plugins: unknown entry point of ztw.plugins 'gone'; known: .*a file that ends in .py$"
    with pytest.raises(ztw.ZtwError, match=expected):
        check_study(study(plugins=["gone"]))


def test_two_plugins_may_not_use_one_name():
    Path("sub").mkdir()
    plugin(MARGIN, "a.py")
    plugin(MARGIN, "sub/a.py")
    with pytest.raises(
        ztw.ZtwError, match=r"'sub/a.py', line 8: rule 'margin': is registered already, by a.py"
    ):
        check_study(study(plugins=["a.py", "sub/a.py"]))


def test_a_plugin_runs_once_and_again_when_it_was_edited():
    counting = MARGIN + "import builtins\nbuiltins.loads = getattr(builtins, 'loads', 0) + 1\n"
    import builtins

    try:
        for text, loads in ((counting, 1), (counting, 1), (counting.replace("+ 1", "+ 2"), 3)):
            load_plugins([plugin(text)])
            assert builtins.loads == loads  # type: ignore[attr-defined]
    finally:
        del builtins.loads  # type: ignore[attr-defined]
    load_plugins([plugin(HEAD)])
    assert list(PARTS) == [("head", "own")]
    assert not list(Path().glob("__pycache__"))


def test_jobs_load_what_they_can_depend_on_and_write_down_its_digest():
    names = [plugin(MARGIN, "a.py"), plugin(HEAD, "b.py")]
    load_plugins(names)
    digests = {name: sha256(Path(name)) for name in names}
    assert plugins_with(names, ["head", "backbone"]) == {"b.py": digests["b.py"]}
    assert plugins_with(names, ["ensemble"]) == plugins_with(names, ["rule"]) == {"a.py": digests["a.py"]}
    assert plugins_with(names, ["dataset"]) == plugins_with([], ["rule"]) == {}
    assert versions()["plugins"] == digests
    forget()
    assert "plugins" not in versions()
    plugin(MARGIN + "# edited\n", "a.py")
    with pytest.raises(ztw.ZtwError, match=r"'a.py': was edited while the study ran; run it again"):
        load_plugins(digests)


def test_an_installed_package(monkeypatch, tmp_path):
    (tmp_path / "early_parts.py").write_text(MARGIN)
    (tmp_path / "early_parts-1.dist-info").mkdir()
    (tmp_path / "early_parts-1.dist-info/METADATA").write_text("Name: early-parts\nVersion: 1\n")
    (tmp_path / "early_parts-1.dist-info/entry_points.txt").write_text("[ztw.plugins]\nearly = early_parts\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):
        check_study(study(plugins=["early"]))
        assert "margin" in ztw.RULES
        assert versions()["plugins"] == {"early": sha256(tmp_path / "early_parts.py")}
        forget()
    del sys.modules["early_parts"]


def test_the_rules_of_the_workflow_load_what_they_need():
    """A kind's parts are used by these jobs: what each imports has their tables."""
    from ztw.study.provenance import import_closure

    rules = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert set(re.findall(r"^ +plugins=(.*),$", rules, re.M)) == {
        *("NETWORK", "METHOD", 'plugins_of("dataset")', 'plugins_of("backbone")'),
        'plugins_of("ensemble")',
    }
    for script in (ROOT / "workflow/scripts").glob("*.py"):
        closure = import_closure(f"ztw.jobs.{script.stem}")
        uses = {"ztw.exits.rules", "ztw.exits.ensembles", "ztw.models.heads", "ztw.data.decode"} & set(
            closure
        )
        assert ("load_plugins(" in script.read_text()) == bool(uses), script.name
