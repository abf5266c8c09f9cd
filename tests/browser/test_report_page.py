"""Look at the report in headless Chromium: no message, no request, the slider's numbers, keyboard, phone, print."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from ztw.reporting.readable import percent
from ztw.reporting.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")

CHROMIUM = Path("/usr/bin/chromium")
REFERENCE = Path(__file__).parents[2] / "results/reference"
NAME = "cifar10-jpeg-resnet20-systems"
EXITS = 10

if not CHROMIUM.exists():
    pytest.skip(f"needs {CHROMIUM}, Debian's package chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A published study whose curves also have the shares of the exits, as those of a run."""
    folder = tmp_path_factory.mktemp("report") / NAME
    shutil.copytree(REFERENCE / NAME, folder, ignore=shutil.ignore_patterns("figures", "predictions"))
    for file in folder.rglob("curves/[!r]*.parquet"):  # not those of resnet8 and resnet14
        rows = pd.read_parquet(file)
        for exit in range(EXITS):
            rows[f"exit_fraction_{exit + 1}"] = (1 - rows["accuracy"]) ** exit * rows["accuracy"]
        rows.to_parquet(file)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(study, browser, request) -> Iterator[Page]:
    """The loaded report, at a width in pixels (indirect parameter). Fails for any message, error or request."""
    page = browser.new_page(viewport={"width": getattr(request, "param", 1440), "height": 900})
    said: list[str] = []
    address = (study / "report.html").as_uri()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda sent: said.append(sent.url) if not sent.url.startswith((address, "data:")) else None
    )
    page.goto(address)
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    yield page
    page.close()
    assert said == []


def chosen(study: Path, method: str, budget: float) -> pd.DataFrame:
    """Return the test row of every seed at the threshold that the validation split chooses within a budget."""
    found = []
    for file in sorted(study.glob(f"*/*/seed*/curves/{method}.parquet")):
        rows = pd.read_parquet(file)
        fits = rows[rows["split"].eq("validation") & rows["relative_cost"].le(budget)]
        if len(fits):
            best = fits[fits["relative_cost"].eq(fits["relative_cost"].max())].iloc[-1]
            test = rows[rows["split"].eq("test") & rows["parameter"].eq(best["parameter"])]
            found.append(test.iloc[0])
    return pd.DataFrame(found)


def expected(study: Path, method: str, budget: float) -> tuple[str, str]:
    """Return accuracy and cost as the page writes them."""
    rows = chosen(study, method, budget)
    if rows.empty:
        return "-", "-"
    mean, std, cost = (round(float(value), 6) for value in _numbers(rows))
    spread = "" if np.isnan(std) else f" ± {percent(std):.1f}"
    return f"{percent(mean):.1f}{spread}", f"{percent(cost):.1f} %"


def _numbers(rows: pd.DataFrame) -> tuple[float, float, float]:
    accuracy = rows["accuracy"].astype(float)
    return accuracy.mean(), accuracy.std(), rows["relative_cost"].astype(float).mean()


def move_to(page: Page, budget: str) -> None:
    """Move the slider with the keyboard until it shows a budget."""
    page.focus("input[type=range]")
    page.keyboard.press("Home")
    for _ in range(200):
        if page.inner_text(".controls output") == budget:
            return
        page.keyboard.press("ArrowRight")
    raise AssertionError(f"the slider never shows {budget}")


@pytest.mark.parametrize("budget", [0.02, 0.25, 0.5, 0.74, 1.1])
def test_the_slider_shows_the_numbers_of_the_curves(page, study, budget):
    move_to(page, f"{100 * budget:g} %")
    rows = page.locator(".live tbody tr").all()
    assert len(rows) == 15
    for row in rows:
        method = row.get_attribute("data-method")
        shown = row.locator(".accuracy").inner_text(), row.locator(".cost").inner_text()
        assert shown == expected(study, method, budget), method


@pytest.mark.parametrize("method", ["boostnet", "pabee"])
def test_the_bars_are_the_shares_of_the_curves(page, study, method):
    page.select_option("select.of", method)
    move_to(page, "62 %")
    assert page.inner_text("small.where") == "at 62 %"
    bars = page.evaluate(
        "document.querySelector('.exits .chart').view.data('shares').map((bar) => bar.share)"
    )
    shares = chosen(study, method, 0.62)[[f"exit_fraction_{exit + 1}" for exit in range(EXITS)]]
    assert bars == pytest.approx(shares.astype(float).mean().tolist(), abs=1e-4)
    assert page.locator(".exits .chart path[aria-roledescription=bar]").count() == EXITS


def test_a_checked_method_is_drawn(page):
    drawn = "document.querySelector('.main .chart').view.signal('shown')"
    before = page.evaluate(drawn)
    box = page.locator("tr[data-method=branchynet] input")
    assert not box.is_checked()
    box.focus()
    page.keyboard.press("Space")
    assert set(page.evaluate(drawn)) == {*before, "branchynet"}
    assert "branchynet" in page.inner_text(".legend")


def test_times_are_those_of_the_largest_measured_budget(page, study):
    times = pd.read_csv(study / "tables/latency.csv", dtype={"budget": str})
    own = times[times["method"].eq("sdn") & times["batch_size"].eq(1)]
    own = own[own["budget"].eq("0.5") & own["threads"].eq(times["threads"].max())]
    shown = page.locator("tr[data-method=sdn] .time").first
    move_to(page, "50 %")
    assert float(shown.inner_text().removesuffix(" ms")) == pytest.approx(
        1000 / own["images_per_s"].max(), rel=5e-3
    )
    move_to(page, "60 %")
    assert shown.inner_text().endswith(" ms at 50 %")


@pytest.mark.parametrize("page", [390, 1440], indirect=True)
def test_every_part_opens_and_nothing_is_wider_than_the_screen(page):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every((div) => div.querySelector('svg'))"
    )
    assert page.locator("details:not([open])").count() == 0
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".chart svg").first.bounding_box()["width"] > 0.8 * min(width, 900)


def test_charts_follow_the_dark_theme(page):
    fill = "getComputedStyle(document.querySelector('.main svg .role-axis-label text')).fill"
    light = page.evaluate(fill)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(fill) != light


def test_the_first_press_of_tab_offers_the_answer(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    assert page.locator(".skip").bounding_box()["x"] >= 0
