"""Attention of the backbone, the brain encoder and the fusion, drawn over the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go

from bmfl_lab import evaluation
from bmfl_lab.viz.attention import attention_figure, overlay
from bmfl_lab.viz.charts import PALETTE, SEQUENTIAL, contact_sheet
from bmfl_lab.viz.explore import COLOURS, shares_figure, sheet
from bmfl_lab.viz.surface import HEMISPHERES
from widgets.figure import Cortex, LiveFigure, Pictures, enlarged, styled
from widgets.frame import (
    LABEL,
    WIDE,
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
    tiles : bool, default False
        Show all heads of all blocks in one look; for the encoder all ROI queries.
    linked : bool, default False
        Show the cortex beside the map: which vertices respond to a patch, and where the query of an
        ROI looks.
    patch : int, default -1
        Number of the patch in reading order from 0; -1 for the one with most attention.
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
    tiles: bool = False
    linked: bool = False
    patch: int = -1


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
        in words; ``tiles``, row to column to map over the image, empty unless asked for;
        ``effect``, the response of each vertex to the patch, (V,), or None; ``patch``, its row and
        column; ``said``, the text of the status panel.

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
    found = {"panels": panels, "tiles": {}, "effect": None, "patch": (0, 0), "said": said}
    if state.tiles:
        found["tiles"] = _tiles(state, source)
        found["said"] += "" if found["tiles"] else " Shares of ROIs have no maps to tile."
    if state.linked:
        found |= _link(state, source, panels[0]["map"])
        found["said"] += found.pop("linked")
    return found


def _tiles(state: State, source: Explorer) -> dict[str, dict[str, np.ndarray]]:
    """Return row to column to map over the image: blocks and heads, or hemispheres and ROIs."""
    known = source.map_choices(state.source, state.model)
    heads = {f"head {i + 1}": {"head": i} for i in range(known["n_heads"])}
    rows = {"": heads}
    if state.source.startswith("backbone"):
        blocks = range(known["n_blocks"])
        rows = {f"block {b + 1}": {k: {**v, "block": b} for k, v in heads.items()} for b in blocks}
    elif state.source.startswith("encoder"):
        rows = {}
        for name in known["regions"]:
            side, _, roi = name.partition(":")
            rows.setdefault(side, {})[roi] = {"region": name, "head": state.head}
    image, tiles = enlarged(source.image(*state.place)), {}
    for row, columns in rows.items():
        for column, choice in columns.items():
            of = source.attention(state.source, *state.place, model=state.model, **choice)
            if "map" in of:
                made = overlay(image, of["map"], state.opacity)
                tiles.setdefault(row, {})[column] = made
    return tiles


def _link(state: State, source: Explorer, weights: np.ndarray | None) -> dict[str, object]:
    """Return the patch, the response of each vertex to it, and both in words."""
    if weights is None or source.encoder is None or source.atlas is None:
        return {"linked": " Only a map over patches, with a brain encoder, is linked to a cortex."}
    number = state.patch if 0 <= state.patch < weights.size else int(weights.argmax())
    patch = tuple(int(i) for i in np.unravel_index(number, weights.shape))
    effect = source.patch_effect(*state.place, patch=patch, grid=weights.shape)
    atlas = source.atlas
    size = {r: float(np.abs(effect[np.asarray(atlas.rois[r], bool)]).mean()) for r in atlas.present}
    most = sorted(size, key=size.get, reverse=True)[:3]
    said = ", ".join(f"{roi} {size[roi]:.2f}" for roi in most)
    where = f"Patch in row {patch[0] + 1}, column {patch[1] + 1}"
    return {
        "effect": effect,
        "patch": patch,
        "linked": f" {where}: the predicted response changes most in {said} (mean absolute z).",
    }


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
    if state.tiles and (tiles := _tiles(state, source)):
        # each map from its smallest to its largest value, as on the page
        return contact_sheet(tiles, title=f"{source.title}, {state.source}")
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
            "To check it, press 'Check this map', or pass "
            f"checks=bmfl_lab.evaluation.{call}.rows."
        )
    said = f"Sanity checks: {evaluation.attention_verdict(rows)}"
    if state.head >= 0 or state.block >= 0:
        of_block = " of the last block" if kind == "backbone" else ""
        said += f" The checks used the mean over heads{of_block}."
    return said


_GROUPS = {
    "Image": ("images", "index", "shift", "severity"),
    "Attention": ("source", "model", "block", "head", "region"),
    "Look": ("opacity", "compare", "other_index", "other_model", "tiles", "linked"),
}


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
        `check_roi_attention` or `check_brain_attention`. The status shows the verdict on the map;
        a button measures what is missing.
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
    measured: dict[tuple[str, str, str], Sequence[CheckRow]] = {}  # by source, model and region
    tiles, patches = Pictures((1200,), scroll=True), LiveFigure(_patches())
    cortex = Cortex(source.atlas, 360)

    def draw(found: dict, state: State) -> str:
        pictures.show(*_pictures(found["panels"], state))
        _draw_bars(bars.plot, found["panels"], _name(state))
        bars.layout.display = None if found["panels"][0]["map"] is None else "none"
        _show_tiles(tiles, found["tiles"])
        linked = found["effect"] is not None
        if linked:
            _draw_patches(patches.plot, found)
            _show_effect(cortex, found, state)
        for part in (patches, cortex):
            part.layout.display = None if linked else "none"
        place = state.source, state.model, state.region
        return f"{found['said']} {judged(state, measured.get(place, checks))}"

    def check(frame: Frame) -> str:
        of, model, region = frame.state.source, frame.state.model, frame.state.region
        measured[of, model, region] = source.check_map(of, model=model, region=region)
        return frame.redraw()

    frame = Frame(
        title=f"Attention: {source.title}",
        state=first,
        controls=_controls(source, first),
        groups=_GROUPS,
        views=[
            (pictures, "1 1 520px"),
            (bars, "1 1 400px"),
            (patches, "1 1 320px"),
            (cortex, "1 1 400px"),
            (tiles, "1 1 100%"),
        ],
        actions={"Check this map": ("measure the sanity checks of this map on 24 images", check)},
        source=source,
        select=select,
        draw=draw,
        adjust=_adjust,
        twin=figure_of,
        given={"explorer": given},
        folder=folder,
    )
    patches.on_click(lambda point: frame.set(patch=_patch_at(point, patches.plot)))
    cortex.on_click(lambda point: frame.set(**_looking(source, cortex.vertex(point))))
    return frame


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
        "tiles": w.Checkbox(
            value=first.tiles, description="All heads or ROIs", style=LABEL, layout=WIDE
        ),
        "linked": w.Checkbox(
            value=first.linked, description="Linked cortex", style=LABEL, layout=WIDE
        ),
    }


def _patch_at(point: Mapping[str, object], figure: go.Figure) -> int:
    """Return the number of a clicked patch in reading order."""
    return int(point["y"]) * np.shape(figure.data[0].z)[1] + int(point["x"])


def _looking(source: Explorer, vertex: int) -> dict[str, object]:
    """Return the change of the state that shows where the ROI query of a vertex looks."""
    encoder = next((s for s in source.sources if s.startswith("encoder")), "")
    if vertex < 0 or not encoder:
        return {}
    side = HEMISPHERES[int(source.atlas.hemisphere[vertex])]
    names = [f"{side}:{roi}" for roi in source.atlas.present if source.atlas.rois[roi][vertex]]
    known = source.map_choices(encoder)["regions"]
    return {"source": encoder, "patch": -1, "region": next((n for n in names if n in known), "")}


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
            limits = float(panel["map"].min()), float(panel["map"].max())
            yield overlay(enlarged(image), panel["map"], state.opacity), "attention", limits


def _show_tiles(pictures: Pictures, tiles: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    labels = [", ".join(filter(None, (row, col))) for row, of in tiles.items() for col in of]
    images = [image for of in tiles.values() for image in of.values()]
    columns = max((len(of) for of in tiles.values()), default=1)
    made = sheet(images, columns, 100, labels)
    caption = "each map from its smallest (black) to its largest value (yellow)"
    pictures.show(*[(made, caption)] if images else ())


def _patches() -> go.Figure:
    made = go.Figure().add_heatmap(z=[[0.0]], colorscale=SEQUENTIAL)
    made.data[0].update(
        hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>",
        colorbar={"title": {"text": "attention", "side": "right"}, "thickness": 12},
    )
    made.add_scatter(x=[0], y=[0], mode="markers", hoverinfo="skip", showlegend=False, name="patch")
    look = {"symbol": "square-open", "size": 22, "line": {"width": 4}, "color": PALETTE[5]}
    made.data[1].marker = look
    made.update_yaxes(autorange="reversed", scaleanchor="x", visible=False, constrain="domain")
    made.update_xaxes(visible=False, constrain="domain")
    title = "Click a patch: which vertices respond to it?<br>(blue frame: the chosen patch)"
    return styled(made, 360, title).update_layout(margin={"l": 10, "r": 10, "t": 62, "b": 10})


def _draw_patches(figure: go.Figure, found: Mapping) -> None:
    (row, column), weights = found["patch"], found["panels"][0]["map"]
    figure.data[0].z = weights
    figure.data[1].update(x=[column], y=[row])
    figure.data[1].marker.size = max(8, 200 // max(weights.shape))


def _show_effect(cortex: Cortex, found: Mapping, state: State) -> None:
    """Show the response of each vertex to the patch, and outline the ROI of the query."""
    atlas = cortex.surface.atlas
    side, _, roi = state.region.partition(":")
    outline = None
    if state.source.startswith("encoder") and roi in atlas.rois:
        outline = np.asarray(atlas.rois[roi], bool) & (
            np.asarray(atlas.hemisphere) == HEMISPHERES.index(side)
        )
    cortex.show(
        found["effect"],
        title="Click a region: where does its query look?<br>(red: responds more with the patch)",
        unit="response to the patch, z",
        signed=True,
        outline=outline,
        outline_name="" if outline is None else roi,
        borders=np.ones(atlas.n_vertices, dtype=bool),
        view="posterior" if outline is None else "",
    )


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
