"""Pages that the site takes from outside docs/, links to files of the repository, and equations."""

from __future__ import annotations

import io
import re
from functools import partial
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Page of the site -> text of the repository, which has no other home
INCLUDED = {
    "reference/study.md": "config/README.md",
    "results/speed.md": "results/reference/bench/report.md",
    "results/speed-onnx.md": "results/reference/bench/onnx.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
# Files that pages may link to; each has a page that shows it
SHOWN = (
    *("examples/*.py", "examples/*.yaml", "config/*.*", "config/reference/*.yaml"),
    *(
        "workflow/profiles/*/*.yaml",
        "results/reference/*/config.yaml",
        "bench/*.py",
        "Containerfile",
        "Makefile",
        "CITATION.cff",
    ),
)
LINK = re.compile(r"\]\(([^)\s#]*)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".json": "json"}


def on_config(config: MkDocsConfig) -> None:
    """Let blocks of the language `math` be drawn."""
    fence = {"name": "math", "class": "math", "format": equation}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of files outside docs/."""
    for page, source in INCLUDED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    found = {path.relative_to(ROOT).as_posix() for pattern in SHOWN for path in ROOT.glob(pattern)}
    for name in sorted(found - set(INCLUDED.values())):
        files.append(File.generated(config, f"files/{name}.md", content=_shown(name)))


def _shown(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    language = LANGUAGES.get(Path(name).suffix, "make" if name == "Makefile" else "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n````{language}\n{text}````\n"


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turn links to files of the repository into links to their pages."""
    source = INCLUDED.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(partial(_link, source=source, page=page.file.src_uri, files=files), markdown)


def _link(found: re.Match[str], source: str, page: str, files: Files) -> str:
    target, anchor = found[1], found[2] or ""
    if not target or "://" in target or files.get_file_from_path(normpath(join(dirname(page), target))):
        return found[0]
    name = normpath(join(dirname(source), target))
    home = _page(name, files)
    return f"]({relpath(home, dirname(page) or '.')}{anchor})" if home else found[0]


def _page(name: str, files: Files) -> str | None:
    """Return the page of a file or folder of the repository."""
    candidates = [page for page, source in INCLUDED.items() if source == name]
    candidates += [name.removeprefix("docs/"), f"files/{name}.md"]
    if name.startswith("results/reference"):
        place = name.removeprefix("results/reference").removeprefix("/") or "index"
        page = place.split("/")[0].removesuffix(".csv").replace("README.md", "index")
        candidates += [f"results/{place}", f"results/{page}.md"] if "." in place else [f"results/{page}.md"]
    return next((page for page in candidates if files.get_file_from_path(page)), None)


def equation(source: str, *_: Any, **__: Any) -> str:
    """Draw a line of LaTeX as a picture that takes the colour of the text."""
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    drawn = io.BytesIO()
    with rc_context({"svg.hashsalt": "ztw", "mathtext.fontset": "cm"}):
        math_to_image(
            f"${' '.join(source.split())}$",
            drawn,
            format="svg",
            dpi=72,
            color="#123456",
            prop=FontProperties(size=15),
        )
    svg = re.sub(r"(?s)^.*?<svg", "<svg", drawn.getvalue().decode()).replace("#123456", "currentColor")
    svg = re.sub(r"(?s)<metadata>.*?</metadata>", "", svg)
    label = source.strip().replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg class="equation" role="img" aria-label="{label}"', 1)
