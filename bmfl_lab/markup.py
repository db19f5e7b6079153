"""Names of users as plain text in reports, web pages and figures: one escaper for each."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

_MARKDOWN = re.compile(
    r"[\\\[\]|*$<>]|&(?=#?\w+;)|~(?=\S)|(?<=\S)~|(?<!\w)_|_(?!\w)|^[#+-](?=\s|#)"
)
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_FOREIGN_TAG = re.compile(r"<(?!/?(?:br|b|i|extra)>)")


def markdown(text: object) -> str:
    """Return a text that markdown shows as it is: without links, HTML, formulas and new lines.

    Parameters
    ----------
    text : object
        A name; anything but a text is converted to one.
    """
    line = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", str(text))
    line = line.replace("`", "'").replace("://", ":\u200b//")
    return _MARKDOWN.sub(lambda m: _ENTITIES.get(m[0]) or f"\\{m[0]}", line)


def markdown_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return metric rows whose texts markdown shows as they are, see `markdown`."""
    texts = [k for k in rows if k not in ("name", "unit") and rows[k].map(type).isin([str]).any()]
    return rows.assign(
        **{k: rows[k].map(lambda v: markdown(v) if isinstance(v, str) else v) for k in texts}
    )


def plotly_text(value: object) -> object:
    """Return a plotly figure as a dict in which names cannot act as HTML.

    Parameters
    ----------
    value : object
        Dict, list, array or text of a figure. Line breaks and bold or italic text stay, and any
        other tag is shown as text.
    """
    if isinstance(value, str):
        return _FOREIGN_TAG.sub("&lt;", value) if "<" in value else value
    if isinstance(value, Mapping):
        return {key: plotly_text(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plotly_text(part) for part in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return [plotly_text(part) for part in value.tolist()]
    return value
