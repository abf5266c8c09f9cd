"""Test the documentation site in headless Chromium, opened as a folder on disk and from a server on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site that was built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium) -> Iterator[Page]:
    """A page of the browser that fails at its end if there was a message in the console or a request elsewhere."""
    page, messages = chromium.new_page(), []
    page.on("console", lambda message: messages.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: messages.append(f"{page.url}: {error}"))
    page.on("request", lambda request: messages.append(request.url) if is_elsewhere(request.url) else None)
    yield page
    page.close()
    assert messages == []


def is_elsewhere(url: str) -> bool:
    return not url.startswith(("file://", "data:", "blob:", "about:", "http://127.0.0.1:"))


@pytest.fixture
def server(site):
    """The address of a server that serves the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.mark.parametrize("width", [1440, 390])
def test_all_pages(width, site, page):
    """No page asks for a file elsewhere, writes to the console, lacks a picture or is wider than the screen."""
    page.set_viewport_size({"width": width, "height": 900})
    pages = sorted(path for path in site.rglob("*.html") if path.name not in ("report.html", "404.html"))
    assert len(pages) > 40
    faults = []
    for path in pages:
        page.goto(path.as_uri())
        faults += page.evaluate(
            "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        )
        if page.evaluate("document.documentElement.scrollWidth") > width:
            faults.append(f"{path.relative_to(site)}: wider than the screen")
    assert faults == []


def search(page: Page, address: str) -> None:
    page.goto(f"{address}/index.html")
    page.get_by_placeholder("Search").click()
    page.keyboard.type("choose_threshold")
    expect(page.locator(".md-search-result__item").first).to_contain_text("hreshold")


def test_search_in_a_folder_on_disk(site, page):
    search(page, site.as_uri())


def test_search_from_a_server(server, page):
    search(page, server)


def test_a_reader_finds_every_page_of_the_navigation(site, page):
    """All pages but the shown files and the reports are in the menu."""
    page.goto((site / "index.html").as_uri())
    found = page.evaluate("[...document.querySelectorAll('.md-nav--primary a[href]')].map(a => a.href)")
    linked = {
        Path(url.removeprefix("file://").partition("#")[0]).relative_to(site).as_posix() for url in found
    }
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "report.html"}
    assert {name for name in pages - linked if not name.startswith("files/")} <= {"404.html"}
