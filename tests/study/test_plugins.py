"""Test plugins: loaded once, one-line errors, and params of the jobs that can depend on them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import ztw
from ztw.catalogue.datasets import DATASETS
from ztw.catalogue.parts import PARTS, PLUGINS
from ztw.exits.rules import RULES, exit_rule
from ztw.files import sha256
from ztw.models.checkpoints import versions
from ztw.models.heads import HEADS
from ztw.study.config import check_study
from ztw.study.plugins import forget, load_plugins, plugins_with

ROOT = Path(__file__).parents[2]
TINY = yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text())
MARGIN = (ROOT / "examples/my_parts.py").read_text()
HEAD = """
import ztw
from ztw.models.heads import HEADS
@ztw.register("head", "own")
def own(shape, num_classes, previous, size, options):
    return HEADS["pool"](shape, num_classes, previous, size, options)
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
    assert ztw.list_rules()[-1] == list(RULES)[-1] == "margin"
    forget()
    assert "margin" not in RULES
    with pytest.raises(ztw.ZtwError, match=r"'margin' is unknown; known: max_softmax, (?!.*margin)"):
        check_study(study(methods={"own": {"ics": "independent", "rule": "margin"}}))


def test_an_error_names_parts_of_plugins_too():
    methods = {"own": {"ics": "independent", "rule": "margn"}}
    expected = r"^methods.own.rule: 'margn' is unknown; known: max_softmax, .*, margin; did you mean margin"
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
        "def mine(name, num_classes, channels, size, options):\n    ...\n"
    )
    given = study(plugins=[plugin(text)], archs=["mine"], evaluation={})
    with pytest.raises(ztw.ZtwError, match=r"'mine' needs images of at least 16 pixels.*digits has 8"):
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
    (MARGIN.replace('"margin"', '"entropy"'), "line 8: rule 'entropy': is the name of a built-in"),
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
def test_an_error_is_one_line_with_its_place(text, message):
    with pytest.raises(ztw.ZtwError, match=f"^plugins: 'own.py'.*{re.escape(message)}") as caught:
        check_study(study(plugins=[plugin(text)]))
    assert "\n" not in str(caught.value)
    assert not PARTS
    assert "margin" not in RULES


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
    with pytest.raises(ztw.ZtwError, match=r"'a.py': was edited while the study ran; run the study again"):
        load_plugins(digests)


def test_an_installed_package(monkeypatch, tmp_path):
    (tmp_path / "early_parts.py").write_text(MARGIN)
    (tmp_path / "early_parts-1.dist-info").mkdir()
    (tmp_path / "early_parts-1.dist-info/METADATA").write_text("Name: early-parts\nVersion: 1\n")
    (tmp_path / "early_parts-1.dist-info/entry_points.txt").write_text("[ztw.plugins]\nearly = early_parts\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):
        check_study(study(plugins=["early"]))
        assert "margin" in RULES
        assert versions()["plugins"] == {"early": sha256(tmp_path / "early_parts.py")}
        forget()
    sys.modules.pop("early_parts", None)


HELPED = """
import ztw
{imports}
@ztw.register("head", "own")
def own(shape, num_classes, previous, size, options):
    {inside}
    return {used}
"""


def helped(files: dict[str, str], imports: str = "", used: str = "helper.side", inside: str = "pass") -> str:
    """Write a plugin whose head returns a value of its helpers, and the helpers' files."""
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    return plugin(HELPED.format(imports=imports, inside=inside, used=used))


def told() -> object:
    head: Any = HEADS["own"]
    return head(None, None, None, None, None)


@pytest.mark.parametrize(
    ("files", "imports", "used", "inside"),
    [
        ({"helper.py": "side = 1"}, "import helper", "helper.side", "pass"),
        ({"helper.py": "side = 1"}, "from helper import side", "side", "pass"),
        ({"helper.py": "side = 1"}, "", "side", "from helper import side"),
        ({"far.py": "side = 1", "near.py": "from far import side"}, "import near", "near.side", "pass"),
        ({"parts/deep/far.py": "side = 1"}, "from parts.deep import far", "far.side", "pass"),
        (
            {"pack/__init__.py": "from .far import side", "pack/far.py": "side = 1"},
            "import pack",
            "pack.side",
            "pass",
        ),
    ],
)
def test_an_edit_of_a_helper_is_an_edit_of_the_plugin(files, imports, used, inside):
    name = helped(files, imports, used, inside)
    load_plugins([name])
    (before,) = plugins_with([name], ["head"]).values()
    assert before != sha256(Path(name))
    assert told() == 1
    (edited,) = (Path(file) for file, text in files.items() if "1" in text)
    edited.write_text("side = 2")  # the time and size of the file may be the same
    with pytest.raises(
        ztw.ZtwError, match=r"^plugins: 'own.py': was edited while the study ran; run the study again$"
    ):
        load_plugins({name: before})
    load_plugins([name])
    assert told() == 2
    assert PLUGINS[name] != before
    edited.write_text("side = 1")
    load_plugins({name: before})
    assert told() == 1
    assert not list(Path().rglob("__pycache__"))


def test_installed_packages_are_not_helpers():
    text = f"import json, numpy, yaml, ztw.exits.rules, importlib.metadata, os.path\n{HEAD}"
    load_plugins([plugin(text)])
    assert PLUGINS["own.py"] == sha256(Path("own.py"))


def test_an_edit_of_a_shared_helper_changes_both_plugins(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/shared_side.py").write_text("side = 1")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    names = [
        plugin(f"import shared_side\n{HEAD}", "a.py"),
        plugin(f"import shared_side\n{HEAD.replace('own', 'other')}", "b.py"),
    ]
    load_plugins(names)
    before = dict(PLUGINS)
    (tmp_path / "lib/shared_side.py").write_text("side = 2")
    load_plugins(names)
    assert all(PLUGINS[name] != before[name] for name in names)


def test_images_are_decoded_again_when_a_helper_of_their_data_set_changes():
    text = """
import ztw
import reading
@ztw.register("dataset", "mine", num_classes=2, size=8, channels=1)
def mine(): return reading.images()
"""
    digests = []
    for images in ("1", "2"):
        Path("reading.py").write_text(f"def images(): return {images}")
        load_plugins([plugin(text)])
        digests.append(DATASETS["mine"].digest)
    assert digests[0] != digests[1] == PLUGINS["own.py"]


def test_a_helper_that_registers_the_part_runs_again_with_the_plugin():
    Path("helper.py").write_text(HEAD)
    for text in ("import helper\n", "import helper\n# edited\n"):
        load_plugins([plugin(text)])
        assert ("head", "own") in PARTS


@pytest.mark.parametrize("module", ["queue", "yaml", "taken"])
def test_a_helper_needs_a_unique_name(module, monkeypatch, tmp_path):
    """Else Python would import the other module, or other code would import the helper."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/taken.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    importlib.import_module(module)
    Path(f"{module}.py").write_text("side = 1")
    expected = (
        rf"^plugins: 'own.py': imports {module}: both .*/{module}.py and .* have this name; rename your file$"
    )
    with pytest.raises(ztw.ZtwError, match=expected):
        load_plugins([plugin(f"import {module}\n{HEAD}")])
    assert not PARTS
    sys.modules.pop("taken", None)


def test_an_error_in_a_helper_names_the_plugin_s_line():
    Path("helper.py").write_text("x = 1 +\n")
    with pytest.raises(
        ztw.ZtwError, match=r"^plugins: 'own.py', line 1: SyntaxError: .*\(helper.py, line 1\)$"
    ):
        load_plugins([plugin(f"import helper\n{HEAD}")])
    Path("helper.py").write_text("x = 1\n")
    load_plugins(["own.py"])


def test_the_modules_of_an_editable_package_are_helpers(monkeypatch, tmp_path):
    package = tmp_path / "src/early_pack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(
        HELPED.format(imports="from .sub import side", inside="pass", used="side")
    )
    (package / "sub.py").write_text("side = 1")
    info = tmp_path / "early_pack-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: early-pack\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ztw.plugins]\nearly = early_pack.parts\n")
    for place in (tmp_path, tmp_path / "src"):
        monkeypatch.syspath_prepend(str(place))
    load_plugins(["early"])
    for edited, side in (("sub", 2), ("sub", 3), ("__init__", 3)):
        before = dict(PLUGINS)
        (package / f"{edited}.py").write_text(f"side = {side}")
        with pytest.raises(ztw.ZtwError, match="was edited while the study ran"):
            load_plugins(before)
        load_plugins(["early"])
        assert told() == side


def test_the_rules_of_the_workflow_load_what_they_need():
    """A job can use the parts of a kind if it imports the table of the kind."""
    from ztw.study.provenance import import_closure

    rules = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert set(re.findall(r"^ +plugins=(.*),$", rules, re.M)) == {
        *("NETWORK", "METHOD", 'plugins_of("dataset")', 'plugins_of("backbone")'),
        'plugins_of("ensemble")',
    }
    blocks = re.split(r"^ *rule (\w+):$", rules, flags=re.M)[1:]
    tables = {"ztw.exits.rules", "ztw.exits.ensembles", "ztw.models.heads", "ztw.data.decode"}
    for rule, text in zip(blocks[::2], blocks[1::2], strict=True):
        uses = tables & set(import_closure(f"ztw.jobs.{rule}"))
        assert ("plugins=" in text) == bool(uses), rule
