"""Pages that are one file: a template beside this module with what it shows, our styles and scripts, and Plotly."""

from __future__ import annotations

import base64
import gzip
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_HERE = Path(__file__).parent


def render_page(template: str, page: Mapping[str, Any], out: Path) -> None:
    """Write a page that loads nothing from elsewhere; ``out`` is replaced atomically.

    Raises ValueError for a key that the template asks for and the page lacks.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inside = {
        "plotly": Markup(packed_plotly()),
        "style": Markup((_HERE / "report.css").read_text("utf-8")),
        "script": Markup((_HERE / "report.js").read_text("utf-8")),
    }
    try:
        written = environment.get_template(template).render({**inside, **page})
    except UndefinedError as error:
        raise ValueError(f"the results lack a key ({error}); write results.json again with this version") from error
    _write_atomically(written, out)


@cache
def packed_plotly() -> str:
    """Plotly's script, gzip in base64: as it is it would fill most of what a page may weigh."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii")


def _write_atomically(page: str, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(page)
        # mkstemp makes the file private; a report is there to be passed on.
        os.chmod(aside, 0o644)
        os.replace(aside, out)
    except BaseException:
        os.unlink(aside)
        raise
