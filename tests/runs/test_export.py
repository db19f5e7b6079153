"""An exported page carries its figures, shows what is hostile as text, and can neither run nor fetch anything."""

import base64
import io
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from bmfl_lab.errors import RunError
from bmfl_lab.runs.__main__ import main
from bmfl_lab.runs.export import BROWSERS, export_html, page_of_markdown, pdf_of_page

HOSTILE = '<img src=x onerror="alert(1)">.png'
LABEL = "<script>alert(2)</script>"


def png():
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def display(**data):
    return nbformat.v4.new_output(
        "display_data", {k.replace("__", "/"): v for k, v in data.items()}
    )


def executed(path, *outputs, prose="# A title\n\nText with *stress*.", code="x = 1  # a < b"):
    cell = nbformat.v4.new_code_cell(code, outputs=list(outputs), execution_count=1)
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose), cell]), path
    )
    return path


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.seen = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.seen += data


def read(path):
    page = Page(path.read_text(encoding="utf-8"))
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "svg", "link", "form", "base"), (
            tag
        )
        assert not [a for a in attributes if a.startswith("on") or a == "style"], attributes
        if tag == "img":
            content = base64.b64decode(
                attributes["src"].removeprefix("data:image/png;base64,"), validate=True
            )
            assert Image.open(io.BytesIO(content)).format == "PNG"
        else:
            assert "src" not in attributes
        assert not attributes.get("href", "").lower().startswith(("javascript", "data", "file"))
    return page


def test_figures_tables_prose_and_folded_code_are_there(tmp_path):
    table = "<div><style scoped>.x{color:red}</style><table><thead><tr><th>r</th></tr></thead><tbody><tr><td>0.5</td></tr></tbody></table></div>"
    log = nbformat.v4.new_output(
        "stream", name="stdout", text="".join(f"step {i}\n" for i in range(40))
    )
    source = executed(
        tmp_path / "a.ipynb",
        display(image__png=png(), text__plain="<Figure>"),
        display(text__html=table),
        log,
    )
    page = read(export_html(source))
    names = [tag for tag, _ in page.tags]
    assert names.count("img") == 1 and {"h1", "em", "table", "th", "td", "details"} <= set(names)
    assert (
        "a < b" in page.seen
        and "0.5" in page.seen
        and "log of 40 lines" in page.seen
        and "step 39" in page.seen
    )
    assert (
        "color:red" not in page.seen and "<Figure>" not in page.seen and "\u00b6" not in page.seen
    )
    policy = next(
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'; img-src data:;" in policy and "script" not in policy
    without = read(export_html(source, tmp_path / "b.html", code=False))
    assert "a < b" not in without.seen and sorted(p.name for p in tmp_path.iterdir()) == [
        "a.html",
        "a.ipynb",
        "b.html",
    ]


@pytest.mark.parametrize(
    "output",
    [
        display(text__html=f"<b>{HOSTILE}</b> {LABEL}"),
        display(text__markdown=f"**{HOSTILE}** {LABEL}"),
        display(text__plain=f"{HOSTILE} {LABEL}"),
        nbformat.v4.new_output("stream", name="stdout", text=f"reading {HOSTILE} {LABEL}"),
        nbformat.v4.new_output(
            "error", ename="E", evalue=LABEL, traceback=[f"\x1b[31m{HOSTILE}\x1b[0m", LABEL]
        ),
    ],
    ids=["html", "markdown", "plain", "stream", "error"],
)
def test_a_hostile_file_name_and_class_label_show_as_text(output, tmp_path):
    page = read(export_html(executed(tmp_path / "a.ipynb", output)))
    assert (
        "alert(1)" in page.seen
        and "<script>alert(2)</script>" in page.seen
        and "\x1b" not in page.seen
    )


def test_hostile_prose_and_titles_show_as_text(tmp_path):
    prose = f"# {LABEL}\n\n{HOSTILE} [x](javascript:alert(3)) <a href='https://example.org' onclick='x'>y</a>"
    source = executed(tmp_path / "a.ipynb", display(text__plain="1"), prose=prose, code=LABEL)
    page = read(export_html(source))
    assert page.seen.count("<script>alert(2)</script>") == 3  # title, heading, code
    assert [a.get("href") for t, a in page.tags if t == "a"][-1] == "https://example.org"


@pytest.mark.parametrize(
    "data",
    [
        {"image__svg+xml": "<svg onload='alert(1)'/>"},
        {"application__javascript": "alert(1)"},
        {"image__png": 'AAAA" onerror="alert(1)'},
        {"image__png": base64.b64encode(b"<svg onload='alert(1)'/>").decode()},
        {"application__vnd.jupyter.widget-view+json": {"model_id": "x"}},
    ],
    ids=["svg", "javascript", "broken png", "svg as png", "widget"],
)
def test_what_is_no_picture_is_replaced_by_its_text(data, tmp_path):
    page = read(
        export_html(executed(tmp_path / "a.ipynb", display(**data, text__plain="in words")))
    )
    assert "in words" in page.seen and "alert(1)" not in json.dumps(page.tags) + page.seen
    assert "img" not in [tag for tag, _ in page.tags]


def test_secrets_and_home_paths_do_not_leave(tmp_path, monkeypatch):
    from bmfl_lab.runs import scrub

    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    scrub._replacements.cache_clear()
    said = f"{Path.home()}/x correct-horse-battery hf_{'a' * 24}"
    page = read(
        export_html(
            executed(tmp_path / "a.ipynb", display(text__plain=said), prose=f"# {said}", code=said)
        )
    )
    scrub._replacements.cache_clear()
    assert (
        "correct-horse" not in page.seen and "hf_a" not in page.seen and "~/x *** ***" in page.seen
    )
    assert str(Path.home()) + "/" not in page.seen


def test_the_command_line_says_what_it_wrote_or_why_not(tmp_path, capsys):
    source = executed(tmp_path / "a.ipynb", display(text__plain="1"))
    assert main(["export", str(source), "--to", str(tmp_path / "b.html"), "--no-code"]) == 0
    assert f"wrote {tmp_path / 'b.html'}" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ([str(tmp_path / "none.ipynb")], "nothing at"),
        (
            [str(executed(tmp_path / "empty.ipynb"))],
            "an executed notebook in empty.ipynb; got no output",
        ),
        ([str(source), "--to", str(tmp_path / "file" / "x.html")], "to write"),
    ):
        assert main(["export", *arguments]) == 2 and said in capsys.readouterr().err
    with pytest.raises(RunError, match="damaged JSON"):
        (tmp_path / "bad.ipynb").write_text("{")
        export_html(tmp_path / "bad.ipynb")
    assert not list(tmp_path.glob(".*")) and os.path.getsize(tmp_path / "b.html") > 500


def test_a_report_becomes_one_page_with_its_figures_and_folds(tmp_path):
    (tmp_path / "f.png").write_bytes(base64.b64decode(png()))
    text = (
        "# R\n\n<details><summary>Each</summary>\n\n- `a` against `b`\n\n</details>\n\n"
        "![a figure](f.png)\n\n![another](http://x/y.png)\n\n| a |\n| --- |\n| 0.5 |\n"
    )
    page = page_of_markdown(text, {"f.png": tmp_path / "f.png"}, "R & <b>")
    assert page.count("<img") == 1 and "data:image/png;base64,iVBOR" in page
    assert "<details><summary>Each</summary>" in page and "<code>a</code>" in page
    assert "<td>0.5</td>" in page and "<title>R &amp; &lt;b&gt;</title>" in page
    assert "<script" not in page and 'src="http' not in page


@pytest.mark.browser
def test_a_page_is_printed_as_pdf():
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip("no browser that prints")
    assert pdf_of_page("<p>0.5</p>").startswith(b"%PDF")


def test_without_a_browser_the_way_to_a_pdf_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="write the report with --html and print it from any"):
        pdf_of_page("<p>0.5</p>")
    (tmp_path / "chromium").write_text("#!/bin/sh\necho no display >&2\n")
    (tmp_path / "chromium").chmod(0o755)
    with pytest.raises(RunError, match="a PDF from chromium; got no display"):
        pdf_of_page("<p>0.5</p>")
