"""Test the page of the report, without a browser; tests/browser looks at it in one."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ztw
from ztw.files import write_json
from ztw.reporting.report import marked, write_report
from ztw.reporting.report_source import ReportSource
from ztw.study.layout import Layout

REFERENCE = Path(__file__).parents[2] / "results/reference"
STUDY = REFERENCE / "debian-sections-minilm"
LOADING = {"src", "href", "srcset", "data", "action", "poster"}
WITHOUT_END = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The addresses, headings and texts of a page; checks that its elements are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in LOADING]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in WITHOUT_END:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("report") / "debian.html"
    assert write_report(STUDY, out) == out
    assert not (STUDY / "report.html").exists()
    return out.read_text(encoding="utf-8")


def test_the_page_has_every_section_in_order(html):
    page = Page(html)
    assert page.open == []
    assert page.texts["h1"] == [
        "Do exits on a text encoder beat a linear model on TF-IDF, a cascade of both, and the encoder's first layers?"
    ]
    assert page.texts["h2"] == [
        "Test accuracy within each budget",
        "Move the budget",
        "The best of each kind",
        "Details",
        "Where this comes from",
    ]
    folded = ["In measured time", "Curves", "Exits", "Latency", "Calibration", "Thresholds"]
    assert page.texts["summary"] == [*folded, "Durations", "The study's file"]
    assert page.texts["dt"] == ["commit", "date", "machine", "computed on", "versions", "seeds"]
    assert len(set(page.ids)) == len(page.ids)
    assert "by 0.7 [0.4, 1.0] to 4.4 [3.8, 4.9] points." in html


def test_the_page_is_small_and_loads_nothing(html):
    assert len(html.encode()) < 5_000_000
    addresses = Page(html).addresses
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == []
    css = re.findall(r"<style>(.*?)</style>", html, re.S)
    assert not re.search(r"url\(|@import", "".join(css))


def test_groups_have_their_own_best(html):
    first = html[html.index("Test accuracy within each budget") :]
    assert re.search(r"backbone alone</th><td>-</td>", first)
    groups = re.findall(r'<tr class="group">.*?>([^<]+)</th></tr>(.*?)</tbody>', first, re.S)[:2]
    assert [title for title, _ in groups] == ["early exits", "static networks, cascades of networks"]
    for _, rows in groups:
        assert 'class="best"' in rows


def test_charts_have_a_text_and_valid_json(html):
    texts = re.findall(r'<div class="chart" role="img" aria-label="([^"]+)">', html)
    specs = [json.loads(spec) for spec in re.findall(r'class="spec">(.*?)</script>', html, re.S)]
    assert len(texts) == len(specs) == len(set(texts)) > 6
    assert all("config" not in spec and spec["width"] == "container" for spec in specs)


def test_example_images_are_shown_with_their_predictions(tmp_path):
    study = tmp_path / STUDY.name
    shutil.copytree(STUDY, study, ignore=shutil.ignore_patterns("figures", "predictions"))
    samples = [
        {"label": "<cat>", "predicted": "dog", "image": "data:image/png;base64,AA=="},
        {"label": "dog", "predicted": "dog", "image": "data:image/png;base64,AA=="},
    ]
    about = {"method": "joint", "budget": "0.5", "seed": 0}
    groups = [{"title": "9 % leave at the first exit", "samples": samples}]
    write_json(Layout(study).gallery("debian-sections-minilm-l6"), {**about, "groups": groups})
    text = write_report(study).read_text(encoding="utf-8")
    assert (study / "report.html").is_file()
    page = Page(text)
    assert "Who leaves early?" in page.texts["h2"]
    assert 'alt="&lt;cat&gt;"' in text
    assert {"dog, is <cat>", "dog"} <= set(page.texts["span"])


def test_a_folder_without_results_gives_one_line(tmp_path):
    with pytest.raises(ztw.ZtwError, match=rf"^{tmp_path}: has no tables of a finished study"):
        write_report(tmp_path)


def test_an_altered_table_is_refused(tmp_path):
    study = tmp_path / STUDY.name
    shutil.copytree(STUDY, study, ignore=shutil.ignore_patterns("figures", "predictions"))
    (study / "tables/.differences.csv.sha256").write_text(f"{64 * '0'}  differences.csv\n")
    with pytest.raises(ztw.ZtwError, match=r"differences\.csv: altered since it was written"):
        write_report(study)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        (
            "# A study.\n# Question: does it\n#   work? More words.\n# Computes: x\nseeds: [0]\n",
            "Does it work?",
        ),
        ("# A study.\nseeds: [0]\n", "mine"),
    ],
)
def test_the_question_stands_in_the_heading(text, question, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text(text)
    assert ReportSource(Layout(tmp_path / "mine")).question == question


def test_names_and_bold_words_become_html():
    assert marked("**`a<b` wins:** 1") == "<b><code>a&lt;b</code> wins:</b> 1"
