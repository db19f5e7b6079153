"""An executed notebook as one HTML file to mail: figures inside it, no script, nothing fetched.

Markdown and tables are sanitised, everything else is escaped, and the page forbids itself
(Content-Security-Policy) to run a script or to load anything but the pictures it carries. Formulas
stay as they are written.
"""

from __future__ import annotations

import base64
import binascii
import html
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmfl_lab.errors import RunError, message
from bmfl_lab.files import atomic_path
from bmfl_lab.runs.notebook import Notebook, read_notebook, tags, text
from bmfl_lab.runs.scrub import scrub, scrub_text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SIGNATURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
LOG_LINES = 30
"""Longer logs are folded up."""
_PROSE = (
    "p",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "br",
    "hr",
    "pre",
    "del",
    "sup",
    "sub",
    "div",
    "span",
)
_TABLE = ("table", "caption", "colgroup", "col", "thead", "tbody", "tfoot", "tr", "th", "td")
_ATTRIBUTES = {"a": ["href", "title"], "th": ["colspan", "rowspan"], "td": ["colspan", "rowspan"]}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
pre, code { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }
details { margin: .75rem 0; border-left: 3px solid #d0d7de; padding-left: .75rem; }
summary { color: #57606a; cursor: pointer; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-size: .9rem; display: block; overflow-x: auto; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #d8dee4; text-align: left; }
.numbers th, .numbers td { text-align: right; }
blockquote { border-left: 3px solid #d0d7de; margin-left: 0; padding-left: 1rem; color: #57606a; }
.error { border-left: 3px solid #b35900; padding-left: .75rem; }
"""


def export_html(source: str | Path, target: str | Path | None = None, *, code: bool = True) -> Path:
    """Write an executed notebook as one HTML file.

    Parameters
    ----------
    source : str or Path
        The notebook, with its outputs.
    target : str or Path, optional
        The file to write; beside the notebook by default, with the ending ``.html``.
    code : bool, default True
        Keep the code, folded up.

    Returns
    -------
    Path
        Of the file, which is written whole or not at all.

    Raises
    ------
    RunError
        If the notebook cannot be read or has no output, or the file cannot be written.
    """
    source = Path(source)
    notebook = read_notebook(source)
    if not any(c.get("outputs") for c in notebook.cells):
        raise RunError(
            message(f"an executed notebook in {source.name}", "no output in it", "run it first")
        )
    target = source.with_suffix(".html") if target is None else Path(target)
    page = _page(notebook, code)
    try:
        with atomic_path(target) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(
            message(f"to write {target}", str(error), "choose another file with --to")
        ) from error
    return target


def _page(notebook: Notebook, code: bool) -> str:
    cells = [_cell(scrub(dict(cell)), code) for cell in notebook.cells]
    headings = [
        line
        for c in notebook.cells
        if c["cell_type"] == "markdown"
        for line in text(c).splitlines()
    ]
    title = next(
        (line.lstrip("# ").strip() for line in headings if line.startswith("# ")), notebook.stem
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="referrer" content="no-referrer">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(scrub_text(title))}</title>",
            f"<style>{_STYLE}</style></head><body>",
            *(c for c in cells if c),
            "</body></html>\n",
        ]
    )


def _cell(cell: Mapping[str, Any], code: bool) -> str:
    source = text(cell)
    if cell["cell_type"] == "markdown":
        return f"<section>{_markdown(source)}</section>"
    if cell["cell_type"] != "code" or "skip-execution" in tags(cell):
        return ""
    shown = (
        f"<details><summary>code</summary><pre>{html.escape(source)}</pre></details>"
        if code and source
        else ""
    )
    return f"<section>{shown}{''.join(_outputs(cell.get('outputs', ())))}</section>"


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for stream, group in itertools.groupby(outputs, lambda o: o["output_type"] == "stream"):
        if not stream:
            yield from map(_output, group)
            continue
        printed = _plain("".join(_joined(o["text"]) for o in group))
        lines = len(printed.splitlines())
        if lines > LOG_LINES:
            yield f"<details><summary>log of {lines} lines</summary><pre>{printed}</pre></details>"
        else:
            yield f"<pre>{printed}</pre>"


def _output(output: Mapping[str, Any]) -> str:
    if output["output_type"] == "error":
        return f'<pre class="error">{_plain(output["traceback"], chr(10))}</pre>'
    data = output.get("data", {})
    for kind, signature in SIGNATURES.items():
        if picture := _picture(data.get(kind), signature):
            return f'<p><img alt="figure" src="data:{kind};base64,{picture}"></p>'
    if "text/html" in data:
        # a table's own style block would be shown as text
        table = re.sub(
            r"<style\b.*?</style\s*>",
            "",
            _joined(data["text/html"]),
            flags=re.DOTALL | re.IGNORECASE,
        )
        return f'<div class="numbers">{_clean(table)}</div>'
    if "text/markdown" in data:
        return _markdown(_joined(data["text/markdown"]))
    return f"<pre>{_plain(data['text/plain'])}</pre>" if "text/plain" in data else ""


def _picture(encoded: Any, signature: bytes) -> str:
    """Return the picture in base64 of our own making, or nothing when the text does not hold one."""
    try:
        content = base64.b64decode("".join(_joined(encoded or "").split()), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return base64.b64encode(content).decode() if content.startswith(signature) else ""


def _joined(value: Any, between: str = "") -> str:
    return value if isinstance(value, str) else between.join(value)


def _plain(value: Any, between: str = "") -> str:
    from nbconvert.filters.ansi import strip_ansi

    return html.escape(strip_ansi(_joined(value, between)))


def _markdown(source: str) -> str:
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    return _clean(
        re.sub(r'<a class="anchor-link"[^>]*>[^<]*</a>', "", markdown2html_mistune(source))
    )


def _clean(markup: str) -> str:
    import bleach

    allowed = {*bleach.ALLOWED_TAGS, *_PROSE, *_TABLE}
    return bleach.clean(
        markup, tags=allowed, attributes=_ATTRIBUTES, protocols=("http", "https", "mailto")
    )
