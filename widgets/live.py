"""A plotly figure on a page: parts that change are sent, the library is sent once a kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anywidget
import plotly.graph_objects as go
import plotly.io as pio
import traitlets
from plotly.offline import get_plotlyjs

N_TRACES = 16
_ESM = """
function library(model) {
  // every figure of a page shares one copy; it is 5 MB
  globalThis.__bmflPlotly ??= (async () => {
    const shelf = await model.widget_manager.get_model(model.get("library"));
    const module = {exports: {}};
    new Function("module", "exports", "define", shelf.get("source"))(module, module.exports, undefined);
    return module.exports;
  })();
  return globalThis.__bmflPlotly;
}
async function render({model, el}) {
  const box = document.createElement("div");
  box.style.width = "100%";
  box.style.minHeight = model.get("height") + "px";
  el.style.width = "100%";
  el.appendChild(box);
  const Plotly = await library(model);
  const known = {};
  const part = (name) => {
    const text = model.get(name);
    if (known[name]?.text !== text) known[name] = {text, value: JSON.parse(text)};
    return known[name].value;
  };
  let waiting = false;
  const draw = async () => {
    waiting = false;
    const data = [...Array(model.get("n_traces")).keys()].map((i) => part("t" + i));
    await Plotly.react(box, data, JSON.parse(model.get("look")), {displaylogo: false});
    box.dataset.drawn = String(1 + Number(box.dataset.drawn ?? 0));
  };
  const later = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  await draw();
  box.on("plotly_click", (event) => {
    const p = event.points[0];
    const index = typeof p.pointNumber === "number" ? p.pointNumber : -1;
    model.set("clicked", JSON.stringify({trace: p.curveNumber, index, x: p.x, y: p.y, at: performance.now()}));
    model.save_changes();
  });
  model.on("change", later);
  const seen = new ResizeObserver(() => Plotly.Plots.resize(box));
  seen.observe(el);
  return () => { seen.disconnect(); model.off("change", later); Plotly.purge(box); };
}
export default {render};
"""


class _Shelf(anywidget.AnyWidget):
    """Holds the text of plotly.js for all figures of a kernel."""

    _esm = "export default {};"
    source = traitlets.Unicode().tag(sync=True)


_shelves: list[_Shelf] = []


def _shelf() -> _Shelf:
    if not _shelves or _shelves[0].comm is None:
        _shelves[:] = [_Shelf(source=get_plotlyjs())]
    return _shelves[0]


class Live(anywidget.AnyWidget):
    """A plotly figure on the page that follows a `plotly.graph_objects.Figure`.

    plotly's own FigureWidget sends 5 MB of library with every figure and gives up where that takes the page more
    than two seconds; here the figures of a kernel share one copy, and the page always draws the present state.

    Parameters
    ----------
    plot : plotly Figure
        Changed in place by its owner; `push` brings the page up to date. It is not shown while its layout's ``meta``
        is "hidden".
    fixed : int
        Number of first traces that never change.
    """

    _esm = _ESM
    library = traitlets.Unicode().tag(sync=True)
    look = traitlets.Unicode("{}").tag(sync=True)
    n_traces = traitlets.Int(0).tag(sync=True)
    height = traitlets.Int(300).tag(sync=True)
    clicked = traitlets.Unicode("").tag(sync=True)
    for _i in range(N_TRACES):
        locals()[f"t{_i}"] = traitlets.Unicode("{}").tag(sync=True)

    def __init__(self, plot: go.Figure, fixed: int = 0):
        self.plot, self._fixed, self._sent = plot, fixed, False
        super().__init__(library=_shelf().model_id, height=int(plot.layout.height or 300))
        self.push()
        self._sent = True

    def push(self) -> None:
        """Send the traces and the layout where they changed."""
        # a figure that has nothing to say gives its place up
        self.layout.display = "none" if self.plot.layout.meta == "hidden" else None
        with self.hold_sync():
            self.n_traces = len(self.plot.data)
            for i, trace in enumerate(self.plot.data):
                if i >= self._fixed or not self._sent:
                    setattr(self, f"t{i}", pio.to_json(trace.to_plotly_json(), validate=False))
            self.look = pio.to_json(self.plot.layout.to_plotly_json(), validate=False)

    def on_click(self, act: Callable[[dict[str, Any]], None]) -> None:
        """Call ``act({"trace", "index", "x", "y"})`` when a point is clicked."""
        self.observe(lambda change: act(json.loads(change["new"])), names="clicked")
