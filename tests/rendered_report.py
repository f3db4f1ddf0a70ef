"""A report as its reader's browser takes it apart."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from glyphrun.report.render import Example, render_report


class Page(HTMLParser):
    """The page's start tags and the text of its elements, scripts and styles apart."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data.replace("\u00a0", " ")


def rendered(results: dict[str, Any], tmp_path: Path, examples: list[Example] | None = None) -> tuple[Page, str]:
    out = tmp_path / "report.html"
    render_report(results, examples or [], out)
    source = out.read_text("utf-8")
    return Page(source), source
