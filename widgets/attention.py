"""Attention of the backbone, the brain encoder and the fusion, drawn over the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go

from bmfl_lab import evaluation
from bmfl_lab.viz.attention import attention_figure, overlay
from bmfl_lab.viz.explore import COLOURS, shares_figure
from widgets.figure import LiveFigure, Pictures, enlarged, styled
from widgets.frame import (
    Frame,
    ImageState,
    dropdown,
    explorer_of,
    fit_index,
    image_controls,
    image_set,
    set_options,
    slider,
)

if TYPE_CHECKING:
    from bmfl_lab.evaluation import Explorer
    from bmfl_lab.evaluation.attention_outcomes import CheckRow
    from bmfl_lab.viz.charts import Figure

COMPARE = ("nothing", "another image", "another model")
# names of the maps in the rows of `bmfl_lab.evaluation`'s checks, and the calls that make them
CHECKED = {
    "backbone": ("backbone CLS", "check_backbone(backbone, fusion, images)"),
    "encoder": ("{region} query", "check_roi_attention(encoder, images, {region!r})"),
    "fusion: brain": ("brain CLS", "check_brain_attention(fusion, images)"),
}


@dataclass(frozen=True)
class State(ImageState):
    """State of the attention explorer, beside the image of `ImageState`.

    Parameters
    ----------
    source : str
        Kind of attention, one of ``Explorer.sources``; the last one by default.
    model : str
        Model whose fusion attends; the first one with cross-attention by default.
    block : int, default -1
        Number of the backbone's block from 0, -1 for the last. The page counts from 1.
    head : int, default -1
        Number of the head from 0, -1 for the mean over heads. The page counts from 1.
    region : str
        Query of the brain encoder, such as "left:V1"; the first one by default.
    opacity : float, default 0.55
        Opacity of the map over the image, from 0 to 1.
    compare : str, default "nothing"
        Second picture beside the map, one of `COMPARE`.
    other_index : int, default 1
        Number of the image beside the first one.
    other_model : str
        Model beside the first one; another one with cross-attention by default.
    """

    source: str = ""
    model: str = ""
    block: int = -1
    head: int = -1
    region: str = ""
    opacity: float = 0.55
    compare: str = "nothing"
    other_index: int = 1
    other_model: str = ""


def resolve(state: State, source: Explorer) -> State:
    """Return the state with defaults filled in, and an existing head, block and region."""
    chosen = state.source or source.sources[-1]
    able = source.map_models(chosen) or source.models
    model = state.model or next(iter(able), "")
    other = state.other_model or next((m for m in able if m != model), model)
    state = dataclasses.replace(state, source=chosen, model=model, other_model=other)
    known = source.map_choices(chosen, model)
    region = state.region if state.region in known["regions"] else next(iter(known["regions"]), "")
    state = dataclasses.replace(
        state,
        region=region,
        head=min(state.head, known["n_heads"] - 1),
        block=max(-1, min(state.block, known["n_blocks"] - 1)),
        compare=state.compare if state.compare in comparisons(state, source) else COMPARE[0],
    )
    return image_set(state, source)


def comparisons(state: State, source: Explorer) -> tuple[str, ...]:
    """Return the options of `COMPARE` for a map; another model needs a map of its own."""
    own = state.source.startswith("fusion") and len(source.map_models(state.source)) > 1
    return COMPARE if own else COMPARE[:2]


def _why_alone(state: State, source: Explorer) -> str:
    """Return why no other model's map can be shown beside a map; empty if one can."""
    if len(source.models) < 2 or comparisons(state, source) == COMPARE:
        return ""
    if state.source.startswith("fusion"):
        return " No other model has cross-attention that could be shown beside this map."
    owner = state.source.partition(":")[0]
    return f" This map belongs to the {owner} and is the same for all models."


def select(state: State, source: Explorer) -> dict[str, object]:
    """Return the arrays that a state shows.

    Parameters
    ----------
    state : State
        The choices that are shown.
    source : Explorer
        Explorer of the study.

    Returns
    -------
    dict
        ``panels``, one or two mappings with ``title``, ``image`` uint8 (S, S, 3), ``map`` float
        (h, w) or None, ``shares``, each ROI's share of the attention, or None, and ``prediction``
        in words; ``said``, the text of the status panel.

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
    said = "; ".join(f"{p['title']}: {p['prediction']}" for p in panels) + "."
    if panels[0]["map"] is not None:
        said += " Colours run from the smallest to the largest value of each map: "
        said += "compare places, not strengths."
    said += _why_alone(state, source)
    return {"panels": panels, "said": said}


def _panel(state: State, source: Explorer) -> dict[str, object]:
    choice = {name: getattr(state, name) for name in ("model", "block", "head", "region")}
    found = source.attention(state.source, *state.place, **choice)
    shares, prediction = None, "no model"
    if "weights" in found:
        shares = dict(zip(found["regions"], map(float, found["weights"])))
    if state.model:
        p = source.probabilities(state.model, *state.place)
        name = source.class_names[int(p.argmax())]
        prediction = f"{state.model} predicts {name} ({100 * p.max():.0f} %)"
    label = source.label(state.images, state.index)
    title = f"{state.images} {state.index}"
    title += f", {source.class_names[label]}" if label >= 0 else ""
    title += f", {state.model}" if state.compare == "another model" else ""
    return {
        "title": title,
        "image": source.image(*state.place),
        "map": found.get("map"),
        "shares": shares,
        "prediction": prediction,
    }


def figure_of(state: State, source: Explorer | str | Path) -> Figure:
    """Return the static figure of a state, made with matplotlib.

    Parameters
    ----------
    state : State
        The choices that are shown.
    source : Explorer, str or Path
        Explorer of the study, or the place of saved models.

    Raises
    ------
    ConfigError, DataError
        If a model, map, region or image is missing.
    """
    source = explorer_of(source)
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


def judged(state: State, checks: Iterable[CheckRow]) -> str:
    """Return the verdict of the sanity checks on a state's map, in words.

    Parameters
    ----------
    state : State
        State with its source and region, as `resolve` returns it.
    checks : iterable of CheckRow
        ``rows`` of the results of `check_backbone`, `check_roi_attention` or
        `check_brain_attention`.

    Returns
    -------
    str
        The verdict, or that the map was not checked and how to check it.
    """
    kind = next((k for k in CHECKED if state.source.startswith(k)), None)
    if kind is None:
        return (
            "There is no such check for shares of ROIs: lesion the ROIs "
            "(widgets.region_ablation) to see whether they matter."
        )
    name, call = (text.format(region=state.region) for text in CHECKED[kind])
    rows = [row for row in checks if row.map == name]
    if not rows:
        return (
            "Not checked: it is unknown whether this map shows what the model uses. "
            f"To check it, pass checks=bmfl_lab.evaluation.{call}.rows."
        )
    said = f"Sanity checks: {evaluation.attention_verdict(rows)}"
    if state.head >= 0 or state.block >= 0:
        of_block = " of the last block" if kind == "backbone" else ""
        said += f" The checks used the mean over heads{of_block}."
    return said


def attention_explorer(
    source: Explorer | str | Path,
    /,
    *,
    checks: Iterable[CheckRow] = (),
    folder: str | Path = "figures",
    **state,
) -> Frame:
    """Browse images with attention drawn over them, side by side for two images or two models.

    Parameters
    ----------
    source : Explorer, str or Path
        Explorer of a study, or the place of saved models: the folder of a run, a spec or its name,
        or the folder of one model.
    checks : iterable of CheckRow, optional
        Sanity checks of the maps: ``rows`` of the results of `check_backbone`,
        `check_roi_attention` or `check_brain_attention`. The status shows the verdict on the map.
    folder : str or Path, default "figures"
        Folder in which pictures are saved.
    **state
        Fields of the first `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell.
    """
    given, source = source, explorer_of(source)
    first = resolve(State(**state), source)
    checks, pictures, bars = tuple(checks), Pictures((250,) * 4), LiveFigure(_bars())

    def draw(found: dict, state: State) -> str:
        pictures.show(*_pictures(found["panels"], state))
        _draw_bars(bars.plot, found["panels"], _name(state))
        bars.layout.display = None if found["panels"][0]["map"] is None else "none"
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
        given={"explorer": given},
        folder=folder,
    )


def _controls(source: Explorer, first: State) -> dict[str, w.Widget]:
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


def _adjust(state: State, controls: Mapping[str, w.Widget], source: Explorer) -> State:
    state = resolve(_with_able_models(state, source), source)
    known = source.map_choices(state.source, state.model)
    able = source.map_models(state.source) or source.models
    n_blocks = known["n_blocks"]
    options = {
        "block": [("last", -1), *((str(i + 1), i) for i in range(n_blocks - 1))],
        "head": [("mean", -1), *((str(i + 1), i) for i in range(known["n_heads"]))],
        "region": known["regions"],
        "model": able,
        "other_model": able,
        "compare": comparisons(state, source),
    }
    for name, found in options.items():
        set_options(controls[name], found)
    controls["block"].disabled = n_blocks == 1
    controls["region"].disabled = not known["regions"]
    controls["other_index"].disabled = state.compare != "another image"
    controls["other_model"].disabled = state.compare != "another model"
    if state.block >= n_blocks - 1:
        state = dataclasses.replace(state, block=-1)
    return fit_index(fit_index(state, controls, source), controls, source, "other_index")


def _with_able_models(state: State, source: Explorer) -> State:
    """Return the state without models that cannot show a newly chosen source."""
    able = source.map_models(state.source)
    unable = set(source.models) - set(able)
    model, other = (m if m not in unable else "" for m in (state.model, state.other_model))
    if other == (model or next(iter(able), "")):
        other = ""
    return dataclasses.replace(state, model=model, other_model=other)


def _pictures(panels: list[dict], state: State) -> Iterator[tuple[np.ndarray | None, str]]:
    """Yield each panel's image and its map with their captions."""
    for panel in panels:
        image = panel["image"]
        yield image, panel["title"].replace(", ", "\n", 1)
        if panel["map"] is not None:
            # on the enlarged image the map is smooth
            yield overlay(enlarged(image), panel["map"], state.opacity), "attention"


def _bars() -> go.Figure:
    made = go.Figure()
    for name, colour in zip(("", " "), COLOURS):
        made.add_bar(x=[], y=[], marker_color=colour, name=name)
    made.update_layout(
        barmode="group", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"}, showlegend=True
    )
    made.update_yaxes(title_text="share of attention", rangemode="tozero")
    return styled(made, 300).update_layout(margin={"l": 10, "r": 10, "t": 72, "b": 70})


def _draw_bars(figure: go.Figure, panels: list[dict], title: str) -> None:
    figure.layout.title.text = title
    for i, trace in enumerate(figure.data):
        panel = panels[i] if i < len(panels) else {"title": " ", "shares": None}
        shares = panel["shares"] or {}
        trace.update(x=list(shares), y=list(shares.values()), showlegend=bool(shares))
        trace.name = panel["title"]
