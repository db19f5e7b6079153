"""Names of users stay names: in reports, on web pages, in figures and in widgets."""

import html
import re

import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure
from nbconvert.filters import markdown2html

from bmfl_lab.evaluation.findings import findings
from bmfl_lab.evaluation.report import render
from bmfl_lab.markup import markdown, plotly_text
from bmfl_lab.records import MetricRow
from bmfl_lab.viz.charts import figure_style
from widgets.figure import LiveFigure, Pictures, styled

NAMES = {
    "image": "<img src=x onerror=alert(1)>",
    "script": "<script>alert(1)</script>",
    "cell": "a|b",
    "heading": "a\n# Forged",
    "heading at the start": "# Forged",
    "table": "a\n\n| x | y |\n| --- | --- |\n| 1 | 2 |",
    "formula": "$\\frac{$",
    "link": "[x](javascript:alert(1))",
    "picture": "![x](https://example.org/x.png)",
    "address": "see https://example.org/x",
    "automatic link": "<https://example.org>",
    "code": "a`b<svg onload=alert(1)>`",
    "emphasis": "**a** _b_ ~~c~~",
    "quotes": "\"' onmouseover='alert(1)",
    "entity": "&lt;img src=x&gt;",
    "line separator": "a\u2028# Forged\x85x\r# Forged",
    "form": "<form action=x><input name=y>",
    "backslash": "a\\|b\\<b>",
}
LIVE = re.compile(r"<(img|script|svg|a|h[1-6]|form|input|em|strong|del|code)\b", re.IGNORECASE)


@pytest.mark.parametrize("kind", NAMES)
def test_markdown_shows_a_name_as_it_is(kind):
    name = NAMES[kind]
    page = markdown2html(f"Before {markdown(name)} after\n\n{markdown(name)} begins a line")
    shown = html.unescape(re.sub(r"</?(p|div)[^>]*>", "", page)).replace("\u200b", "")
    assert not LIVE.search(page), page
    plain = re.sub(r"[\n\r\x85\u2028]", " ", name).replace("`", "'")
    assert f"Before {plain} after" in shown


@pytest.mark.parametrize(
    "name", ["V1", "random_vertices", "fusion ~ backbone", "noise, covariance", "r = 0.31", "A & B"]
)
def test_ordinary_names_do_not_change(name):
    assert markdown(name) == name


@pytest.mark.parametrize("kind", NAMES)
def test_reports_and_findings_hold_no_markup_of_names(kind):
    name, rows = NAMES[kind], []
    place = {"unit": "fraction", "split": "test", "n": 400, "roi": name, "subject": name}
    place["selection"] = name
    for model, value in ((name, 0.7), ("backbone", 0.6)):
        rows += [
            MetricRow("accuracy", value + s / 50, seed=s, model=model, **place) for s in (0, 1)
        ]
    over = {"ci_low": 0.05, "ci_high": 0.15, "n_seeds": 2, "p_adjusted": 0.01, "interval": name}
    rows.append(
        MetricRow(
            "accuracy_difference",
            0.1,
            model=name,
            reference="backbone",
            notes=name,
            **place,
            **over,
        )
    )
    frame = pd.DataFrame([vars(r) for r in rows])
    frame = frame.assign(run_id=f"04-1{name}", study=f"{name} (simulated)")
    text = render(frame, f"Report of {name}", ["ok"])
    every = "\n".join([text, *findings(frame)])
    page = re.sub(r'<a class="anchor-link"[^>]*>', "", markdown2html(every))  # of nbconvert
    assert not re.search(r"<(img|script|svg|a|form|input|del)\b[^>]*(src|on|href|action)", page)
    assert not re.search(r"^#+ Forged", every, re.MULTILINE)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        f"# {markdown(f'Report of {name}')}",
        *(["## What was found"] if findings(frame) else []),
        "## accuracy (fraction)",
        "### by seed",
        "## accuracy_difference (fraction)",
    ]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table


@pytest.mark.parametrize("kind", NAMES)
def test_live_figures_and_captions_hold_no_markup_of_names(kind):
    name = NAMES[kind]
    plot = styled(go.Figure(), 300, f"{name}<br><b>own</b>")
    plot.add_bar(x=[name, "b"], y=[1, 2], name=name, hovertext=[name, name])
    plot.update_layout(xaxis={"title": {"text": name}, "ticktext": [name], "tickvals": [0]})
    figure, pictures = LiveFigure(plot), Pictures((100,))
    pictures.show((None, name))
    state = figure.state.value.encode().decode("unicode_escape", "ignore")
    for page in (state, pictures.value):
        assert not re.search(r"<(img|script|svg|a|form|input)\b", page, re.IGNORECASE), page
    assert "<br><b>own</b>" in plotly_text(plot.to_dict())["layout"]["title"]["text"]
    assert "</script>alert" not in figure.to_html(False).replace("<script", "")
    assert name not in figure.to_html(False) or "<" not in name


@pytest.mark.parametrize("kind", NAMES)
def test_figures_draw_a_name_as_it_is(kind):
    with figure_style():
        figure = Figure()
        axes = figure.subplots()
        axes.bar([0, 1], [1, 2], label=f"x{NAMES[kind]}")
        axes.set_xticks([0, 1], labels=[NAMES[kind], "b"])
        axes.set_title(NAMES[kind])
        legend = axes.legend()
    figure.draw_without_rendering()
    texts = [*legend.get_texts(), *axes.get_xticklabels()]
    assert axes.get_title(loc="left") == NAMES[kind]
    assert not any(text.get_parse_math() for text in texts)
