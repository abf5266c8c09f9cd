"""Test the documentation: its code runs and prints what is shown, and its commands and settings exist.

A block after `<!-- not run: reason -->` is checked, but not run. A block of text right after Python code is its
output. A Python block that starts with a file's name is the file of a plugin.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml

import ztw
from ztw.catalogue.parts import PARTS, PLUGINS
from ztw.study.config import check_study
from ztw.study.plugins import forget, load_plugins

ROOT = Path(__file__).parent.parent
DOCS, REFERENCE = ROOT / "docs", ROOT / "results/reference"
PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: \S.* -->\n)?^```(\w+)\n(.*?)^```$", re.S | re.M)
COMPUTED = DOCS / "explanation"  # the output on these pages is the same on every machine
MADE = re.compile(r"^cp \S+ (\S+)$", re.M)
RUN_BY_USERS = {"make", "python", "pip", "cp", "cd", "git"}


class Block(NamedTuple):
    """A block of a page. output: whether it is the output of the Python block before it."""

    kind: str
    text: str
    run: bool
    output: bool


def blocks(page: Path) -> Iterator[Block]:
    text, last = page.read_text(), ""
    end = 0
    for found in BLOCK.finditer(text):
        follows = last == "python" and not text[end : found.start()].strip()
        yield Block(found[2], found[3], not found[1], found[2] == "text" and follows)
        last, end = found[2], found.end()


def pages(*kinds: str) -> Any:
    with_any = [page for page in PAGES if any(block.kind in kinds for block in blocks(page))]
    return pytest.mark.parametrize("page", with_any, ids=lambda page: page.relative_to(ROOT).as_posix())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run code in, with the checkout's examples, studies and results."""
    for name in ("examples", "config", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    forget()
    PLUGINS.clear()


def printed(block: Block, names: dict[str, Any]) -> str:
    """Run a Python block, or load it as a plugin, and return its output."""
    ast.parse(block.text)
    if not block.run:
        return ""
    if named := re.match(r"# (\w+\.py)\n", block.text):
        Path(named[1]).write_text(block.text)
        load_plugins([named[1]])
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(block.text, names)
    return output.getvalue()


@pages("python", "yaml")
def test_the_code_of_a_page(page, folder):
    """Python code runs and prints what is shown; parts of studies are valid."""
    names: dict[str, Any] = {"__name__": "page"}
    output = ""
    for block in blocks(page):
        if block.kind == "python":
            output = printed(block, names)
        elif block.output:
            shown, found = block.text.strip(), output.strip()
            if COMPUTED not in page.parents:
                shown, found = (re.sub(r"[\d.]+", "0", text) for text in (shown, found))
            assert shown == found
        elif block.kind == "yaml":
            for key, part in list(PARTS.items()):
                if not part.plugin:  # a plugin may register the same part
                    PARTS.pop(key).remove()
            check_study(whole_study(yaml.safe_load(block.text)))


def whole_study(part: dict[str, Any] | None) -> dict[str, Any]:
    """Add what a part of a study lacks."""
    part = part or {}
    if "logits" in part:
        return part
    base = yaml.safe_load((ROOT / "config/own-images.yaml").read_text())
    if "overrides" in part:
        base |= yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    return base | part


@pages("sh")
def test_the_commands_of_a_page(page):
    made = set(MADE.findall(page.read_text()))
    for block in blocks(page):
        if block.kind == "sh":
            for line in block.text.replace("\\\n", "").splitlines():
                for command in line.split(" && "):
                    check_command(shlex.split(command, comments=True), made, block.run)


def check_command(words: list[str], made: set[str], run: bool) -> None:
    """Check that targets, variables, scripts, options and files of a command exist; made: files that commands made."""
    program, rest = (words[0], words[1:]) if words else ("cd", [])
    assert program in RUN_BY_USERS or not run, f"{program}: mark the block as not run, with the reason"
    if program == "make":
        check_make(rest, made)
    elif program == "python":
        check_script(rest, made)
    elif program == "pip":
        extras = re.findall(r"^([a-z]+) = \[$", (ROOT / "pyproject.toml").read_text(), re.M)
        assert all(name in extras for word in rest for name in re.findall(r"\[(.*)\]", word))
    elif program == "cp":
        assert (ROOT / rest[0]).is_file()


def check_make(words: list[str], made: set[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, _, value = word.partition("=")
        if not value:
            assert word in targets(), word
            continue
        assert re.search(rf"\b{name}\b", makefile), word
        if name == "CONFIG":
            assert value in made or (ROOT / value).is_file() or value == "config/mine.yaml", word
        if name == "PROFILE":
            assert (ROOT / "workflow/profiles" / value).is_dir(), word


def targets() -> list[str]:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    return phony.split()


def check_script(words: list[str], made: set[str]) -> None:
    own = words[: words.index("--")] if "--" in words else words
    if own[0] == "-m":
        assert find_spec(own[1].split(".")[0]), own
        return
    source = (ROOT / own[0]).read_text()
    for word in own[1:]:
        if word.startswith("--"):
            assert f'"{word}"' in source, f"{own[0]} has no {word}"
        elif word.startswith(("config/", "examples/", "results/")):
            assert (ROOT / word).exists() or word in made or word == "config/mine.yaml", word


def test_every_target_of_the_makefile_is_explained():
    text = (DOCS / "reference/commands.md").read_text()
    assert [name for name in targets() if f"`make {name}`" not in text and name != "help"] == []


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text() for page in (DOCS / "reference/api").glob("*.md"))
    assert sorted(re.findall(r"^::: ztw\.(\w+)$", text, re.M)) == sorted(set(dir(ztw)) - {"__version__"})


def sections(page: Path) -> dict[str, str]:
    """Heading -> text of a page's section; "" -> the text before the first one."""
    return {
        part.partition("\n")[0] if number else "": part
        for number, part in enumerate(re.split(r"^## ", page.read_text(), flags=re.M))
    }


@pytest.mark.parametrize(
    "name", sorted({path.name for path in REFERENCE.glob("*/tables/*.csv")} | {"leaderboard.csv"})
)
def test_every_column_is_explained(name):
    page = sections(DOCS / "reference/tables.md")
    own = page.get(name) or page[name.removesuffix(".csv")]
    for path in [*REFERENCE.glob(f"*/tables/{name}"), *REFERENCE.glob(name)]:
        columns = list(pd.read_csv(path, nrows=0))
        assert [column for column in columns if f"`{column}`" not in own + page[""]] == [], path


def test_every_metric_is_explained():
    text = (DOCS / "reference/metrics.md").read_text()
    for path in REFERENCE.glob("*/tables/metrics.csv"):
        metrics = pd.read_csv(path, usecols=["metric"])["metric"].unique()
        assert [name for name in metrics if f"`{name}`" not in text] == [], path


@pytest.mark.parametrize("study", sorted(path.parent.name for path in REFERENCE.glob("*/config.yaml")))
def test_a_published_study_says_what_it_shows_and_what_not(study):
    """Its page on the site is made of these sections."""
    assert {"What it shows", "What it does not show"} <= sections(REFERENCE / study / "README.md").keys()


@pytest.mark.parametrize("page", [DOCS / "index.md", DOCS.parent / "README.md"], ids=lambda path: path.name)
def test_the_findings_are_those_of_the_tables(page):
    """The numbers on the first page of the site, and in the README."""
    tables = REFERENCE / "cifar10-jpeg-resnet56/tables"
    frontier, differences, latency = (
        pd.read_csv(tables / f"{name}.csv") for name in ("frontier", "differences", "latency")
    )
    rows = frontier.query("unit == 'MACs' and kind == 'early exits'").set_index("budget")
    behind, rival = -100 * rows["difference"], rows["rival"]
    pair = differences.query("protocol == 'held-out' and first == 'sdn' and second == 'ztw'")
    gains = pair.set_index("budget")["difference"]
    times = latency.query("batch_size == 1 and method == 'ztw' and budget == '0.75'")["relative_time"]
    text = page.read_text()
    for words in (
        f"{behind[0.25]:.1f} points more accurate than the best method with exits",
        f"is {behind[0.5]:.1f} points more accurate",
        f"by {-100 * gains['0.25']:.1f} points at 25 % and by {-100 * gains['0.5']:.1f} points at 50 %",
        f"takes {100 * times.min():.0f} % of the ResNet-56's time",
    ):
        assert words in " ".join(text.split()), words
    assert (rival[0.25], rival[0.5]) == ("resnet14", "resnet20")
