"""Where a model looks: attention of the backbone, the brain encoder and the fusion, laid over the image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bmfl_lab.viz.attention import attention_figure, overlay
from bmfl_lab.viz.explore import COLOURS
from widgets.frame import Frame, dropdown, fit_index, image_controls, image_set, slider
from widgets.plots import add_picture, picture, styled

COMPARE = ("nothing", "another image", "another model")


@dataclass(frozen=True)
class State:
    """What the attention explorer shows.

    Parameters
    ----------
    images, index, shift, severity
        Which image; of "test" by default.
    source : str
        Whose attention, one of ``Explorer.sources``; the last one by default.
    model : str
        For the fusion's attention; the first that has one by default.
    block : int
        Block of the backbone, -1 for the last.
    head : int
        -1 for the mean over heads.
    region : str
        Query of the brain encoder ("left:V1"); the first one by default.
    opacity : float
        Of the map over the image.
    compare : str
        One of `COMPARE`.
    other_index : int
        Image beside the first one.
    other_model : str
        Model beside the first one.
    """

    images: str = ""
    index: int = 0
    shift: str = ""
    severity: int = 3
    source: str = ""
    model: str = ""
    block: int = -1
    head: int = -1
    region: str = ""
    opacity: float = 0.55
    compare: str = "nothing"
    other_index: int = 1
    other_model: str = ""


def resolve(state: State, source: Any) -> State:
    """Return the state with defaults filled in from the source, and head, block and region within what it has."""
    models = source.models
    chosen = state.source or source.sources[-1]
    model = state.model or (models[0] if models else "")
    other = state.other_model or (models[-1] if models else "")
    state = image_set(dataclasses.replace(state, source=chosen, model=model, other_model=other), source)
    known = source.map_choices(chosen, model)
    region = state.region if state.region in known["regions"] else (known["regions"] or ("",))[0]
    return dataclasses.replace(
        state,
        region=region,
        head=min(state.head, known["n_heads"] - 1),
        block=max(-1, min(state.block, known["n_blocks"] - 1)),
    )


def select(state: State, source: Any) -> dict[str, Any]:
    """Return the arrays that a state shows.

    Parameters
    ----------
    state : State
        What to show.
    source : Explorer
        Where numbers come from.

    Returns
    -------
    dict
        ``panels``: one or two mappings with ``title``, ``image`` (S, S, 3), ``map`` (h, w) or None, ``shares`` (ROI to
        share) or None, ``answer`` in words; ``said``.

    Raises
    ------
    ConfigError, DataError
        If a model, map, region or image is missing.
    """
    state = resolve(state, source)
    panels = [_panel(state, source)]
    if state.compare == "another image":
        index = min(state.other_index, source.size(state.images) - 1)
        panels.append(_panel(dataclasses.replace(state, index=index), source))
    elif state.compare == "another model":
        panels.append(_panel(dataclasses.replace(state, model=state.other_model), source))
    said = "; ".join(f"{p['title']}: {p['answer']}" for p in panels) + "."
    if panels[0]["map"] is not None:
        said += " Colours run from each map's own least to its own largest value: compare places, not strengths."
    return {"panels": panels, "said": said}


def _panel(state: State, source: Any) -> dict[str, Any]:
    place = (state.images, state.index, state.shift, state.severity)
    choice = {"model": state.model, "block": state.block, "head": state.head, "region": state.region}
    found = source.attention(state.source, *place, **choice)
    shares = dict(zip(found["regions"], map(float, found["weights"]))) if "weights" in found else None
    answer = "no model"
    if state.model:
        p = source.probabilities(state.model, *place)
        answer = f"{state.model} says {source.class_names[int(p.argmax())]} ({100 * p.max():.0f} %)"
    label = source.label(state.images, state.index)
    truth = f", {source.class_names[label]}" if label >= 0 else ""
    title = f"{state.images} {state.index}{truth}"
    if state.compare == "another model":
        title += f", {state.model}"
    return {"title": title, "image": source.image(*place), "map": found.get("map"), "shares": shares, "answer": answer}


def figure_of(state: State, source: Any) -> Any:
    """Return the static twin of the widget: a matplotlib figure.

    Raises
    ------
    ConfigError, DataError
        As `select`.
    """
    from bmfl_lab.viz.explore import shares_figure

    state = resolve(state, source)
    panels = select(state, source)["panels"]
    title = f"{source.title}\n{_name(state)}"
    if panels[0]["map"] is None:
        return shares_figure({p["title"]: p["shares"] for p in panels}, title=title)
    maps = {"attention": [p["map"] for p in panels]}
    titles = [p["title"].replace(", ", "\n") for p in panels]
    return attention_figure([p["image"] for p in panels], maps, titles=titles, title=title, opacity=state.opacity)


def _name(state: State) -> str:
    parts = [state.source]
    if state.source.startswith("backbone"):
        parts.append("last block" if state.block < 0 else f"block {state.block}")
    if state.source.startswith("encoder"):
        parts.append(state.region)
    return ", ".join([*parts, "mean over heads" if state.head < 0 else f"head {state.head}"])


def attention_explorer(source: Any, /, *, folder: str | Path = "figures", **state: Any) -> Frame:
    """Browse images and lay attention over them, side by side for two images or two models.

    Parameters
    ----------
    source : Explorer
        `bmfl_lab.evaluation.Explorer` of a study.
    folder : str or Path
        Where pictures are saved.
    **state
        First state, fields of `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell.
    """
    first = resolve(State(**state), source)
    figure, bars = _pictures(), _bars()
    models = source.models or ("",)
    controls = {
        **image_controls(source, first),
        "source": dropdown("Attention", source.sources, first.source),
        "block": dropdown("Block", [("last", -1)], -1),
        "head": dropdown("Head", [("mean", -1)], -1),
        "region": dropdown("ROI query", [""], ""),
        "opacity": slider("Opacity", first.opacity, 0.0, 1.0, 0.05),
        "model": dropdown("Model", models, first.model),
        "compare": dropdown("Beside it", COMPARE, first.compare),
        "other_index": slider("Other image", 0, 0, 1),
        "other_model": dropdown("Other model", models, first.other_model),
    }
    controls["source"].layout.width = "370px"

    def draw(found: dict, state: State) -> str:
        spatial = found["panels"][0]["map"] is not None
        _draw(figure, bars, found["panels"], state)
        bars.layout.title.text = "" if spatial else _name(state)
        bars.layout.meta = "hidden" if spatial else None
        return found["said"]

    return Frame(
        title=f"Attention: {source.title}",
        state=first,
        controls=controls,
        groups={
            "Image": ("images", "index", "shift", "severity"),
            "Attention": ("source", "model", "block", "head", "region"),
            "Look": ("opacity", "compare", "other_index", "other_model"),
        },
        views=[(figure, "1 1 520px"), (bars, "1 1 400px")],
        source=source,
        select=select,
        draw=draw,
        adjust=_adjust,
        twin=figure_of,
        folder=folder,
    )


def _adjust(state: State, controls: Any, source: Any) -> State:
    state = resolve(state, source)
    known = source.map_choices(state.source, state.model)
    options = {
        "block": [("last", -1), *((str(i), i) for i in range(known["n_blocks"] - 1))],
        "head": [("mean", -1), *((str(i), i) for i in range(known["n_heads"]))],
        "region": list(known["regions"]) or [""],
    }
    for name, found in options.items():
        if list(controls[name].options) != found:
            controls[name].options = found
    controls["block"].disabled = known["n_blocks"] == 1
    controls["region"].disabled = not known["regions"]
    controls["other_index"].disabled = state.compare != "another image"
    controls["other_model"].disabled = state.compare != "another model"
    if state.block >= known["n_blocks"] - 1:
        state = dataclasses.replace(state, block=-1)
    return fit_index(fit_index(state, controls, source), controls, source, "other_index")


def _pictures() -> go.Figure:
    made = make_subplots(rows=1, cols=4, subplot_titles=("image", "attention", " ", " "), horizontal_spacing=0.02)
    for column in range(1, 5):
        add_picture(made, 1, column)
    figure = styled(made, 300)
    figure.update_layout(margin={"l": 6, "r": 6, "t": 56, "b": 6})
    return figure


def _bars() -> go.Figure:
    made = go.Figure()
    for name, colour in zip(("", " "), COLOURS):
        made.add_bar(x=[], y=[], marker_color=colour, name=name)
    made.update_layout(barmode="group", legend={"orientation": "h", "y": 1.12}, showlegend=True)
    made.update_yaxes(title_text="share of attention", rangemode="tozero")
    figure = styled(made, 300)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 60, "b": 70})
    return figure


def _draw(figure: go.Figure, bars: go.Figure, panels: list[dict], state: State) -> None:
    with figure.batch_update():
        for i in range(2):
            panel = panels[i] if i < len(panels) else None
            map_ = None if panel is None else panel["map"]
            figure.data[2 * i].source = picture(None if panel is None else panel["image"])
            figure.data[2 * i + 1].source = picture(None if map_ is None else _large(panel, state.opacity))
            figure.layout.annotations[2 * i].text = "" if panel is None else panel["title"].replace(", ", "<br>", 1)
            figure.layout.annotations[2 * i + 1].text = "" if map_ is None else "attention"
    with bars.batch_update():
        for i, trace in enumerate(bars.data):
            shares = panels[i]["shares"] if i < len(panels) else None
            trace.x, trace.y = ([], []) if shares is None else (list(shares), list(shares.values()))
            trace.name = panels[i]["title"] if i < len(panels) else " "
            trace.showlegend = shares is not None


def _large(panel: dict[str, Any], opacity: float) -> np.ndarray:
    """Return the overlay on the image enlarged to at least 224 pixels, so that the map is smooth."""
    image = panel["image"]
    scale = max(1, round(224 / max(image.shape[:2])))
    return overlay(image.repeat(scale, 0).repeat(scale, 1), panel["map"], opacity)
