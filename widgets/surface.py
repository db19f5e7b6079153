"""Predicted or measured responses and encoding accuracy on the cortex, and tuning of regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go

from bmfl_lab.viz.charts import PALETTE
from bmfl_lab.viz.explore import region_figure, sheet
from bmfl_lab.viz.surface import surface_panel
from bmfl_lab.viz.surface_interactive import VIEWS
from widgets.figure import ERROR, Cortex, LiveFigure, Pictures, styled
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
    slider,
)

if TYPE_CHECKING:
    from bmfl_lab.data.atlas import Atlas
    from bmfl_lab.evaluation import Explorer
    from bmfl_lab.viz.charts import Figure

SHOW = ("predicted response", "subject's response", "encoding accuracy", "noise ceiling")
SIDES = ("both", "left", "right")


@dataclass(frozen=True)
class State(ImageState):
    """State of the surface viewer, beside the image of `ImageState`.

    Parameters
    ----------
    show : str
        Map, one of `SHOW`: the predicted response by default, or the subject's own response without
        an encoder.
    region : str
        ROI or group whose tuning is shown; none by default.
    vertex : int, default -1
        Vertex that was clicked, -1 for none. Its tuning is shown if no region is chosen.
    hemispheres : "both", "left" or "right", default "both"
        Hemispheres that are drawn, outlined and averaged.
    outlines : bool, default False
        Draw the borders of all ROIs.
    threshold : float, default 0.0
        Values whose absolute value is smaller are not drawn.
    view : str, default ""
        Direction of the camera, a key of `bmfl_lab.viz.surface_interactive.VIEWS`; "" for the one
        that shows most of the chosen region.
    """

    show: str = ""
    region: str = ""
    vertex: int = -1
    hemispheres: str = "both"
    outlines: bool = False
    threshold: float = 0.0
    view: str = ""


def resolve(state: State, source: Explorer) -> State:
    """Return the state with a map, and an image set for which that map exists."""
    state = dataclasses.replace(state, show=state.show or SHOW[source.encoder is None])
    if state.show == "subject's response" and source.brain in source.sets:
        state = dataclasses.replace(state, images=source.brain, shift="")
    return image_set(state, source)


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
        ``values`` (V,) with NaN where nothing is drawn; their ``unit``; ``signed``, whether their
        colours are symmetric about zero; ``outline``, the region on the drawn side, bool (V,), or
        None; ``image`` uint8 (S, S, 3) or None; ``tuning`` of the region, see `Explorer.tuning`,
        None without an encoder or labelled images; ``best``, images with the largest response;
        ``region``, its name; ``said``, the text of the status panel.

    Raises
    ------
    ConfigError, DataError
        If the encoder, the responses, the region or the image is missing.
    """
    state = resolve(state, source)
    values, unit, signed, image = _values(state, source)
    on_side = _on_side(state, source.atlas)
    drawn = (np.abs(values) >= state.threshold) & on_side
    outline, region = _region(state, source)
    said, tuning, best = f"{int(drawn.sum())} of {len(values)} vertices drawn.", None, []
    if outline is not None and not np.any(outline & on_side):
        said += f" {region} has no vertex in the {state.hemispheres} hemisphere, "
        said += "the only one drawn."
        outline, region = None, ""
    if outline is not None:
        outline = outline & on_side
        said += " " + _described(state, source.atlas, region, values, outline, unit)
        if state.hemispheres != "both" and state.region:
            region += f", {state.hemispheres}"
        if source.encoder is not None and source.tested:
            tuning = source.tuning(outline)
            best = [source.image(source.tested, int(i)) for i in tuning["best"][:8]]
        elif source.encoder is not None:
            said += " No tuning: this study has no labelled images."
    return {
        "values": np.where(drawn, values, np.nan),
        "unit": unit,
        "signed": signed,
        "outline": outline,
        "image": image,
        "tuning": tuning,
        "best": best,
        "region": region,
        "said": said,
    }


def _on_side(state: State, atlas: Atlas) -> np.ndarray:
    """Return which vertices lie in the drawn hemispheres, bool (V,)."""
    if state.hemispheres == "both":
        return np.ones(atlas.n_vertices, dtype=bool)
    return np.asarray(atlas.hemisphere) == SIDES.index(state.hemispheres) - 1


def _region(state: State, source: Explorer) -> tuple[np.ndarray | None, str]:
    """Return the chosen region, or else the clicked vertex, as a mask and by name."""
    if state.region:
        return source.mask([state.region]), state.region
    vertices = np.arange(source.atlas.n_vertices)
    if state.vertex not in vertices:
        return None, ""
    return vertices == state.vertex, _vertex_name(source.atlas, state.vertex)


def _described(
    state: State, atlas: Atlas, region: str, values: np.ndarray, outline: np.ndarray, unit: str
) -> str:
    """Return a region's size and mean in words, and the value of a vertex clicked inside it."""
    known, n, where = values[outline & np.isfinite(values)], int(outline.sum()), ""
    if state.hemispheres != "both" and state.region:
        where = f" in the {state.hemispheres} hemisphere"
    mean = f"mean {known.mean():.2f} ({unit})" if len(known) else "undefined"
    said = f"{region}: {n} {'vertex' if n == 1 else 'vertices'}{where}, {mean}."
    if state.region and 0 <= state.vertex < len(outline) and outline[state.vertex]:
        value = values[state.vertex]
        own = f"{value:.2f} ({unit})" if np.isfinite(value) else "undefined"
        said += f" Clicked: {_vertex_name(atlas, state.vertex)}, {own}."
    return said


def _values(state: State, source: Explorer) -> tuple[np.ndarray, str, bool | None, object]:
    """Return the map (V,), its unit, whether it is signed (None: see the values), and its image."""
    if state.show == "encoding accuracy":
        return source.accuracy(), "validation r", None, None
    if state.show == "noise ceiling":
        return source.ceiling(), "explainable share of variance", False, None
    if state.show == "subject's response":
        values, image = source.measured(state.index), source.image(source.brain, state.index)
    else:
        values, image = source.predicted(*state.place), source.image(*state.place)
    return values, "response, z", True, image


def _rois_at(atlas: Atlas, vertex: int) -> list[str]:
    return [name for name, mask in atlas.rois.items() if mask[vertex]]


def _vertex_name(atlas: Atlas, vertex: int) -> str:
    side = ("left", "right")[int(atlas.hemisphere[vertex])]
    return f"{side} {' + '.join(_rois_at(atlas, vertex)) or 'no ROI'}, vertex {vertex}"


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
        If the encoder, the responses, the region or the image is missing.
    """
    source = explorer_of(source)
    state = resolve(state, source)
    found, atlas = select(state, source), source.atlas
    on_side = _on_side(state, atlas)
    rois = {name: mask & on_side for name, mask in atlas.rois.items()}
    atlas = dataclasses.replace(atlas, rois=rois)
    outline = list(atlas.present) if state.outlines else []
    if state.region and found["outline"] is not None:
        outline = list(dict.fromkeys([*outline, state.region]))
    panel = surface_panel(
        found["values"],
        atlas,
        title=_title(state, source),
        unit=found["unit"],
        signed=found["signed"],
        outline=outline,
        zoom=True,
    )
    return region_figure(
        panel,
        found["image"],
        found["tuning"],
        source.class_names,
        found["best"],
        region=found["region"],
    )


def _title(state: State, source: Explorer) -> str:
    if state.show in SHOW[2:]:
        return f"{source.title}: {state.show}"
    if state.show == SHOW[1]:
        return f"{source.title}: response to the subject's image {state.index}"
    shift = f", {state.shift.replace('_', ' ')} {state.severity}" if state.shift else ""
    return f"{source.title}: {state.show} to {state.images} image {state.index}{shift}"


def surface_viewer(
    source: Explorer | str | Path, /, *, folder: str | Path = "figures", **state
) -> Frame:
    """Show responses and encoding accuracy on the cortex.

    Parameters
    ----------
    source : Explorer, str or Path
        Explorer of a study, or the place of saved models: the folder of a run, a spec or its name,
        or the folder of one model.
    folder : str or Path, default "figures"
        Folder in which pictures are saved.
    **state
        Fields of the first `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell. A click on the cortex chooses an ROI.
    """
    given, source = source, explorer_of(source)
    first, atlas = resolve(State(**state), source), source.atlas
    cortex, pictures = Cortex(atlas), Pictures((150, 306))
    tuning = LiveFigure(_tuning(source))
    controls = {
        "show": dropdown("Map", SHOW, first.show),
        "hemispheres": dropdown("Hemispheres", SIDES, first.hemispheres),
        "threshold": slider("Hide below", first.threshold, 0.0, 2.0, 0.05),
        "view": dropdown("View", [("of the region", ""), *((v, v) for v in VIEWS)], first.view),
        "region": dropdown("Region", [("none", ""), *_regions(atlas)], ""),
        "outlines": w.Checkbox(
            value=first.outlines, description="All outlines", style=LABEL, layout=WIDE
        ),
        **image_controls(source, first),
    }

    def draw(found: dict, state: State) -> str:
        cortex.show(
            found["values"],
            title=_title(state, source),
            unit=found["unit"],
            signed=found["signed"],
            outline=found["outline"],
            outline_name=state.region,
            borders=_on_side(state, atlas) if state.outlines else None,
            view=state.view,
        )
        shown = "image" if found["image"] is not None else "no image"
        best = f"images with the largest response of {found['region']}" if found["best"] else ""
        pictures.show((found["image"], shown), (sheet(found["best"], columns=4), best))
        _draw_tuning(tuning.plot, found["tuning"], found["region"])
        return found["said"]

    frame = Frame(
        title=f"Cortex of {source.title}",
        state=first,
        controls=controls,
        groups={
            "What": ("show", "region", "hemispheres"),
            "Image": ("images", "index", "shift", "severity"),
            "Look": ("threshold", "view", "outlines"),
        },
        views=[(cortex, "1 1 430px"), ([pictures, tuning], "1 1 430px")],
        source=source,
        select=select,
        draw=draw,
        adjust=lambda s, c, e: fit_index(resolve(s, e), c, e),
        twin=figure_of,
        given={"explorer": given},
        folder=folder,
    )
    cortex.on_click(lambda point: frame.set(**_clicked(atlas, cortex.vertex(point))))
    return frame


def _regions(atlas: Atlas | None) -> list[tuple[str, str]]:
    """Return the groups that have a vertex and all ROIs, as the list names them and by name."""
    if atlas is None:
        return []
    groups = [g for g, members in atlas.groups.items() if set(members) & set(atlas.present)]
    absent = [(f"{r} (absent)", r) for r in atlas.rois if r not in atlas.present]
    return [(r, r) for r in (*groups, *atlas.present)] + absent


def _clicked(atlas: Atlas, vertex: int) -> dict[str, object]:
    """Return the changes of the state after a click on a vertex, -1 for none."""
    inside = _rois_at(atlas, vertex) if vertex >= 0 else []
    return {"vertex": vertex, "region": next(iter(inside), "")}


def _tuning(source: Explorer) -> go.Figure:
    zeros, names = [0.0] * len(source.class_names), list(source.class_names)
    made = go.Figure().add_bar(x=names, y=zeros, marker_color=PALETTE[5], error_y=ERROR)
    made.update_yaxes(title={"text": "predicted response, z", "font": {"size": 12}})
    return styled(made, 260)


def _draw_tuning(figure: go.Figure, tuning: Mapping[str, np.ndarray] | None, region: str) -> None:
    bars = figure.data[0]
    title = f"no tuning of {region}" if region else "click a vertex or choose a region"
    mean = error = np.zeros(len(bars.x))
    if tuning is not None:
        title = f"tuning of {region}<br>(mean, standard error)"
        mean, error = np.nan_to_num(tuning["mean"]), np.nan_to_num(tuning["error"])
    bars.y, bars.error_y.array, figure.layout.title.text = mean, error, title
