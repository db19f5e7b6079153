"""A table on the page that is sorted by its headers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anywidget
import ipywidgets as w
import traitlets

from bmfl_lab.files import parse_json

ORDERS = ("ascending", "descending")


class Table(anywidget.AnyWidget):
    """Shows rows of text; a click on a header, or Enter on it, names its column.

    Parameters
    ----------
    label : str
        Name of the table for people who do not see it.

    Notes
    -----
    The owner of the table sorts its rows. The content travels in a label, as that of a
    `LiveFigure` does.
    """

    _esm = Path(__file__).with_name("table.js").read_text("utf-8")
    content_id = traitlets.Unicode().tag(sync=True)
    clicked = traitlets.Unicode("").tag(sync=True)

    def __init__(self, label: str):
        self.label, self.content = label, w.Label()
        self.show([], [])
        super().__init__(content_id=self.content.model_id)

    def show(
        self,
        rows: Sequence[Mapping[str, object]],
        links: Sequence[Mapping[str, str]],
        column: str = "",
        order: str = "",
    ) -> None:
        """Show other rows.

        Parameters
        ----------
        rows : sequence of mapping
            One mapping per row, from the name of a column to its value; all have the same columns.
        links : sequence of mapping of str to str, same length
            Text of each link in the first cell of a row to its address.
        column : str, default ""
            Column by which the rows are sorted; "" for none.
        order : str, default ""
            One of `ORDERS`.
        """
        names = list(rows[0]) if rows else []
        content = {
            "label": self.label,
            "columns": [{"name": n, "order": order if n == column else ""} for n in names],
            "rows": [
                {
                    "cells": [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()],
                    "links": [{"kind": k, "address": a} for k, a in of.items()],
                }
                for row, of in zip(rows, links)
            ],
        }
        self.content.value = json.dumps(content)

    def on_click(self, act: Callable[[str], None]) -> None:
        """Call a function with the name of the column of each clicked header."""
        self.observe(lambda change: act(str(parse_json(change["new"])["column"])), names="clicked")
