"""An executed notebook as one HTML file to mail: figures inside it, no script, nothing fetched.

nbconvert renders and bleach sanitises. The page's own Content-Security-Policy forbids scripts and
everything that is loaded, except the pictures inside it. Formulas stay as they are written.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bmfl_lab.errors import RunError, message, require
from bmfl_lab.files import write_bytes
from bmfl_lab.runs.notebook import read_notebook
from bmfl_lab.runs.scrub import scrub

PNG = b"\x89PNG\r\n\x1a\n"
LOG_LINES = 30
"""Longer logs are folded."""
_SHOWN = ("image/png", "text/html", "text/markdown", "text/plain")
_TAGS = "p h1 h2 h3 h4 h5 h6 br hr pre del sup sub div span table thead tbody tr th td".split()
_FOLDED = ("details", "summary")
_PICTURE = re.compile(r"^!\[[^\]]*\]\(([^()]+)\)$", re.MULTILINE)
_STYLE_BLOCK = re.compile(r"<style\b.*?</style\s*>", re.DOTALL | re.IGNORECASE)
_TEMPLATE = """
{%- extends 'basic/index.html.j2' -%}
{%- block markdowncell -%}<section>{{ cell.source | markdown2html | clean }}</section>
{%- endblock -%}
{%- block data_markdown -%}{{ output.data['text/markdown'] | markdown2html | clean }}
{%- endblock -%}
{%- block data_html -%}{{ output.data['text/html'] | clean }}{%- endblock -%}
{%- block input_group -%}
<details><summary>code</summary><pre>{{ cell.source | escape_html }}</pre></details>
{%- endblock -%}
{%- macro log(text) -%}
{%- set lines = text.rstrip().split("\\n") | length -%}
{%- if lines > log_lines -%}<details><summary>log of {{ lines }} lines</summary>{%- endif -%}
<pre>{{ text | strip_ansi | escape_html }}</pre>
{%- if lines > log_lines -%}</details>{%- endif -%}
{%- endmacro -%}
{%- block stream_stdout -%}{{ log(output.text) }}{%- endblock -%}
{%- block stream_stderr -%}{{ log(output.text) }}{%- endblock -%}
{%- block data_text -%}
<pre>{{ output.data['text/plain'] | strip_ansi | escape_html }}</pre>
{%- endblock -%}
{%- block data_png -%}
<p><img alt="figure" src="data:image/png;base64,{{ output.data['image/png'] }}"></p>
{%- endblock -%}
{%- block error -%}
<pre class="error">{{ output.traceback | join("\\n") | strip_ansi | escape_html }}</pre>
{%- endblock -%}
""".replace("log_lines", str(LOG_LINES))
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
pre, code {{ font-family: ui-monospace, monospace; font-size: .85rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }}
details {{ margin: .75rem 0; border-left: 3px solid #d0d7de; padding-left: .75rem; }}
summary {{ color: #57606a; cursor: pointer; }}
img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; margin: .75rem 0; font-size: .9rem; display: block;
        overflow-x: auto; }}
th, td {{ padding: .2rem .6rem; border-bottom: 1px solid #d8dee4; text-align: left; }}
blockquote {{ border-left: 3px solid #d0d7de; margin-left: 0; padding-left: 1rem; }}
.error {{ border-left: 3px solid #b35900; padding-left: .75rem; }}
</style></head><body>
{body}
</body></html>
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
        Keep the code, folded.

    Returns
    -------
    Path
        Path of the file, which is written whole or not at all.

    Raises
    ------
    RunError
        If the notebook cannot be read or has no output, or the file cannot be written.
    """
    source = Path(source)
    notebook = read_notebook(source)
    require(
        any(c.get("outputs") for c in notebook.cells),
        RunError,
        f"an executed notebook in {source.name}",
        "no output in it",
        "run it first",
    )
    target = source.with_suffix(".html") if target is None else Path(target)
    page = _page(scrub(notebook.content), notebook.stem, code)
    try:
        write_bytes(target, page.encode())
    except OSError as error:
        raise RunError(
            message(f"to write {target}", str(error), "choose another file with --to")
        ) from error
    return target


def page_of_markdown(text: str, pictures: Mapping[str, Path], title: str) -> str:
    """Return a report in markdown as one HTML page that holds its figures.

    Parameters
    ----------
    text : str
        The report; a picture stands in a line of its own, ``![words](name)``.
    pictures : mapping of str to Path
        PNG file of each name.
    title : str
        Title of the page.
    """
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    render = MarkdownWithMath(IPythonRenderer(escape=False, exclude_anchor_links=True)).render
    body = ""
    for part in _PICTURE.split(text):
        if part in pictures:
            data = base64.b64encode(pictures[part].read_bytes()).decode()
            body += f'<p><img alt="figure" src="data:image/png;base64,{data}"></p>'
        else:
            body += _clean(render(part))
    return _PAGE.format(title=html.escape(title), body=body)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


def pdf_of_page(page: str) -> bytes:
    """Return an HTML page as PDF, printed by a browser of the Chromium family.

    Raises
    ------
    RunError
        If no such browser is installed, or it prints nothing.
    """
    browser = next((b for b in BROWSERS if shutil.which(b)), "")
    remedy = "write the report with --html and print it from any browser"
    require(browser, RunError, f"a browser that prints: {', '.join(BROWSERS)}", "none", remedy)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "page.html"), Path(folder, "page.pdf")
        source.write_text(page, encoding="utf-8")
        command = [browser, "--headless", "--no-pdf-header-footer", f"--print-to-pdf={target}"]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses one to root
        command += [f"--user-data-dir={folder}/profile", source.as_uri()]
        said = subprocess.run(command, capture_output=True, text=True, errors="replace")
        require(target.is_file(), RunError, f"a PDF from {browser}", said.stderr[-300:], remedy)
        return target.read_bytes()


def _page(content: dict, stem: str, code: bool) -> str:
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.reads(json.dumps(content), as_version=4)  # joins split lines
    cells = [c for c in notebook.cells if "skip-execution" not in c.metadata.get("tags", [])]
    notebook.cells = [c for c in cells if c.cell_type in ("code", "markdown")]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data = nbformat.from_dict(_shown(output.data))
    exporter = HTMLExporter(
        raw_template=_TEMPLATE,
        filters={"clean": _clean},
        exclude_input=not code,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    title = re.search(r"^# +(.+)", prose, re.MULTILINE)
    return _PAGE.format(title=html.escape(title[1] if title else stem), body=body)


def _shown(data: dict) -> dict:
    """Return the kinds of an output that a page may hold: a real PNG, or else tables and text."""
    kept = {kind: data[kind] for kind in _SHOWN if kind in data}
    try:
        picture = base64.b64decode("".join(kept.pop("image/png", "").split()), validate=True)
    except (binascii.Error, ValueError):
        picture = b""
    if picture.startswith(PNG):
        return {"image/png": base64.b64encode(picture).decode()}
    return kept


def _clean(markup: str) -> str:
    import bleach

    # the sanitiser would show a table's own style block as text
    return bleach.clean(
        _STYLE_BLOCK.sub("", markup),
        tags={*bleach.ALLOWED_TAGS, *_TAGS, *_FOLDED},
        attributes={"a": ["href", "title"], "th": ["colspan", "rowspan"], "td": ["colspan"]},
        protocols=("http", "https", "mailto"),
    )
