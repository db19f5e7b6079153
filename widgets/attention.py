"""Where a model looks: attention of the backbone, the brain encoder and the fusion, laid over the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from bmfl_lab.viz.attention import attention_figure, overlay
from bmfl_lab.viz.explore import COLOURS
from widgets.frame import Frame, dropdown, fit_index, image_controls, image_set, slider, undisturbed
from widgets.pictures import Pictures
from widgets.plots import styled

COMPARE = ("nothing", "another image", "another model")
# names under which `bmfl_lab.evaluation` keeps the checks of a source's map, and how they are made
CHECKED = {
    "backbone": ("backbone CLS", "check_backbone(backbone, fusion, images)"),
    "encoder": ("{region} query", "check_roi_attention(encoder, images, {region!r})"),
    "fusion: brain": ("brain CLS", "check_brain_attention(fusion, images)"),
}


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
        Index of the backbone's block from 0, -1 for the last; people see it counted from 1.
    head : int
        Index of the head from 0, -1 for the mean over heads; people see it counted from 1.
    region : str
        Query of the brain encoder ("left:V1"); the first one by default.
    opacity : float
        Of the map over the image.
    compare : str
        One of `COMPARE`.
    other_index : int
        Image beside the first one.
    other_model : str
        Model beside the first one; another that can show the same attention by default.
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
    chosen = state.source or source.sources[-1]
    able = source.map_models(chosen) or source.models
    model = state.model or (able[0] if able else "")
    other = state.other_model or next((m for m in able if m != model), model)
    state = image_set(
        dataclasses.replace(state, source=chosen, model=model, other_model=other), source
    )
    known = source.map_choices(chosen, model)
    region = state.region if state.region in known["regions"] else (known["regions"] or ("",))[0]
    return dataclasses.replace(
        state,
        region=region,
        head=min(state.head, known["n_heads"] - 1),
        block=max(-1, min(state.block, known["n_blocks"] - 1)),
        compare=state.compare if state.compare in comparisons(state, source) else COMPARE[0],
    )


def comparisons(state: State, source: Any) -> tuple[str, ...]:
    """Return what can be set beside a map: another model only where it has a map of its own."""
    own = state.source.startswith("fusion") and len(source.map_models(state.source)) > 1
    return COMPARE if own else COMPARE[:2]


def _why_alone(state: State, source: Any) -> str:
    """Return why no other model can be set beside a map, in words; empty where one can, or there is only one model."""
    if len(source.models) < 2 or comparisons(state, source) == COMPARE:
        return ""
    if state.source.startswith("fusion"):
        return " No other model here has cross-attention: there is none to set beside this one."
    owner = state.source.partition(":")[0]
    return f" This map is the {owner}'s, whatever the model: there is no other model's map to set beside it."


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
        ``panels``: one or two mappings with ``title``, ``image`` (S, S, 3), ``map`` (h, w) or None,
        ``shares`` (ROI to share) or None, ``answer`` in words; ``said``.

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
    said += _why_alone(state, source)
    return {"panels": panels, "said": said}


def _panel(state: State, source: Any) -> dict[str, Any]:
    place = (state.images, state.index, state.shift, state.severity)
    choice = {
        "model": state.model,
        "block": state.block,
        "head": state.head,
        "region": state.region,
    }
    found = source.attention(state.source, *place, **choice)
    shares = (
        dict(zip(found["regions"], map(float, found["weights"]))) if "weights" in found else None
    )
    answer = "no model"
    if state.model:
        p = source.probabilities(state.model, *place)
        answer = f"{state.model} says {source.class_names[int(p.argmax())]} ({100 * p.max():.0f} %)"
    label = source.label(state.images, state.index)
    truth = f", {source.class_names[label]}" if label >= 0 else ""
    title = f"{state.images} {state.index}{truth}"
    if state.compare == "another model":
        title += f", {state.model}"
    return {
        "title": title,
        "image": source.image(*place),
        "map": found.get("map"),
        "shares": shares,
        "answer": answer,
    }


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
    return attention_figure(
        [p["image"] for p in panels], maps, titles=titles, title=title, opacity=state.opacity
    )


def _name(state: State) -> str:
    parts = [state.source]
    if state.source.startswith("backbone"):
        parts.append("last block" if state.block < 0 else f"block {state.block + 1}")
    if state.source.startswith("encoder"):
        parts.append(state.region)
    return ", ".join([*parts, "mean over heads" if state.head < 0 else f"head {state.head + 1}"])


def judged(state: State, checks: Iterable[Any] | None) -> str:
    """Return what the sanity checks say of a state's map, in words.

    Parameters
    ----------
    state : State
        With its source and region, as `resolve` returns it.
    checks : iterable of CheckRow, optional
        ``rows`` of `check_roi_attention` and its kin.

    Returns
    -------
    str
        The verdict; or that the map was not checked, and how to check it.
    """
    from bmfl_lab.evaluation import attention_verdict

    kind = next((k for k in CHECKED if state.source.startswith(k)), None)
    if kind is None:
        return "Shares of ROIs have no such check: lesion the ROIs (widgets.region_ablation) to see whether they matter."
    name, call = (text.format(region=state.region) for text in CHECKED[kind])
    rows = [row for row in checks or () if row.map == name]
    if not rows:
        how = f"checks=bmfl_lab.evaluation.{call}.rows"
        return f"Not checked: nothing tells whether this map shows what the model uses. To check it, pass {how}."
    said = "Sanity checks: " + attention_verdict(rows)
    if state.head >= 0 or state.block >= 0:
        said += " They were made of the mean over heads" + (
            " of the last block." if kind == "backbone" else "."
        )
    return said


@undisturbed()
def attention_explorer(
    source: Any,
    /,
    *,
    checks: Iterable[Any] | None = None,
    folder: str | Path = "figures",
    **state: Any,
) -> Frame:
    """Browse images and lay attention over them, side by side for two images or two models.

    Parameters
    ----------
    source : Explorer
        `bmfl_lab.evaluation.Explorer` of a study.
    checks : iterable of CheckRow, optional
        Sanity checks of maps, the ``rows`` of `bmfl_lab.evaluation.check_roi_attention` and its
        kin; the status says what they found of the map that is shown.
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
    checks = None if checks is None else tuple(checks)
    pictures, bars = Pictures((250,) * 4), _bars()

    def draw(found: dict, state: State) -> str:
        spatial = found["panels"][0]["map"] is not None
        pictures.show(*_pictures(found["panels"], state))
        _draw_bars(bars, found["panels"])
        bars.layout.title.text = "" if spatial else _name(state)
        bars.layout.meta = "hidden" if spatial else None
        return f"{found['said']} {judged(state, checks)}"

    return Frame(
        title=f"Attention: {source.title}",
        state=first,
        controls=_controls(source, first),
        groups={
            "Image": ("images", "index", "shift", "severity"),
            "Attention": ("source", "model", "block", "head", "region"),
            "Look": ("opacity", "compare", "other_index", "other_model"),
        },
        views=[(pictures, "1 1 520px"), (bars, "1 1 400px")],
        source=source,
        select=select,
        draw=draw,
        adjust=_adjust,
        twin=figure_of,
        folder=folder,
    )


def _controls(source: Any, first: State) -> dict[str, Any]:
    models = source.models or ("",)
    return {
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


def _adjust(state: State, controls: Any, source: Any) -> State:
    state = resolve(_with_able_models(state, source), source)
    known = source.map_choices(state.source, state.model)
    able = list(source.map_models(state.source) or source.models) or [""]
    options = {
        "block": [("last", -1), *((str(i + 1), i) for i in range(known["n_blocks"] - 1))],
        "head": [("mean", -1), *((str(i + 1), i) for i in range(known["n_heads"]))],
        "region": list(known["regions"]) or [""],
        "model": able,
        "other_model": able,
        "compare": list(comparisons(state, source)),
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


def _with_able_models(state: State, source: Any) -> State:
    """Return the state without models that cannot show a newly chosen source."""
    able = source.map_models(state.source)
    kept = {n: getattr(state, n) for n in ("model", "other_model")}
    kept = {
        n: "" if value in source.models and value not in able else value
        for n, value in kept.items()
    }
    if kept["other_model"] == (kept["model"] or next(iter(able), "")):
        kept["other_model"] = ""
    return dataclasses.replace(state, **kept)


def _pictures(panels: list[dict], state: State) -> Iterator[tuple[np.ndarray | None, str]]:
    """Yield each panel's image and its map with their captions."""
    for panel in panels:
        yield panel["image"], panel["title"].replace(", ", "\n", 1)
        if panel["map"] is not None:
            yield _large(panel, state.opacity), "attention"


def _bars() -> go.Figure:
    made = go.Figure()
    for name, colour in zip(("", " "), COLOURS):
        made.add_bar(x=[], y=[], marker_color=colour, name=name)
    made.update_layout(
        barmode="group", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"}, showlegend=True
    )
    made.update_yaxes(title_text="share of attention", rangemode="tozero")
    figure = styled(made, 300)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 72, "b": 70})
    return figure


def _draw_bars(bars: go.Figure, panels: list[dict]) -> None:
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
