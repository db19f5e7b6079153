"""Predicted or measured responses and encoding accuracy on the cortex; a click shows a region's tuning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go

from bmfl_lab.viz.style import PALETTE
from bmfl_lab.viz.surface_interactive import VIEWS
from widgets.frame import (
    LABEL,
    WIDE,
    Frame,
    dropdown,
    fit_index,
    image_controls,
    image_set,
    slider,
    undisturbed,
)
from widgets.pictures import Pictures, sheet
from widgets.plots import ERROR, Cortex, styled

SHOW = ("predicted response", "subject's response", "encoding accuracy", "noise ceiling")
SIDES = ("both", "left", "right")
_HINT = "click a vertex or choose a region"


@dataclass(frozen=True)
class State:
    """What the surface viewer shows.

    Parameters
    ----------
    show : str
        One of `SHOW`; the predicted response by default, the subject's own where there is no
        encoder.
    images, index, shift, severity
        Which image; "test" by default. The subject responded to its own images only.
    region : str
        ROI or group whose tuning is shown; "" for none.
    vertex : int
        A vertex that was clicked, -1 for none: named with its own value, and shown where no region
        is chosen.
    hemispheres : "both", "left" or "right"
        Which side is drawn, outlined and averaged.
    outlines : bool
        Draw the borders of all ROIs.
    threshold : float
        Values nearer to zero are not drawn.
    view : str
        Camera.
    """

    show: str = ""
    images: str = ""
    index: int = 0
    shift: str = ""
    severity: int = 3
    region: str = ""
    vertex: int = -1
    hemispheres: str = "both"
    outlines: bool = False
    threshold: float = 0.0
    view: str = "posterior"


def resolve(state: State, source: Any) -> State:
    """Return the state with a map, and images that have it."""
    show = state.show or SHOW[source.encoder is None]
    state = dataclasses.replace(state, show=show)
    if show == "subject's response" and source.brain in source.sets:
        state = dataclasses.replace(state, images=source.brain, shift="")
    return image_set(state, source)


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
        ``values`` (V,) with NaN where nothing is drawn, ``unit``, ``signed``, ``outline`` (V,) bool
        or None (of the drawn side), ``image`` or None, ``tuning`` or None (no encoder, or no
        labelled images), ``best`` images, ``region`` in words, ``said``.

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
        said += (
            f" {region} has no vertex in the {state.hemispheres} hemisphere, the only one drawn."
        )
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


def _on_side(state: State, atlas: Any) -> np.ndarray:
    """Return which vertices lie on the drawn side, bool (V,)."""
    side = np.asarray(atlas.hemisphere)
    return (
        np.ones(len(side), dtype=bool)
        if state.hemispheres == "both"
        else side == SIDES.index(state.hemispheres) - 1
    )


def _region(state: State, source: Any) -> tuple[np.ndarray | None, str]:
    """Return the chosen region, or else the clicked vertex, as a mask and in words."""
    if state.region:
        return source.mask([state.region]), state.region
    n = source.atlas.n_vertices
    if 0 <= state.vertex < n:
        return np.arange(n) == state.vertex, _vertex_name(source.atlas, state.vertex)
    return None, ""


def _described(
    state: State, atlas: Any, region: str, values: np.ndarray, outline: np.ndarray, unit: str
) -> str:
    """Return the region's size and mean in words, and the value of a vertex that was clicked inside it."""
    known, where = values[outline & np.isfinite(values)], ""
    if state.hemispheres != "both" and state.region:
        where = f" in the {state.hemispheres} hemisphere"
    mean = f"mean {known.mean():.2f} ({unit})" if len(known) else "undefined"
    said = f"{region}: {int(outline.sum())} {'vertex' if outline.sum() == 1 else 'vertices'}{where}, {mean}."
    if state.region and 0 <= state.vertex < len(outline) and outline[state.vertex]:
        value = values[state.vertex]
        own = f"{value:.2f} ({unit})" if np.isfinite(value) else "undefined"
        said += f" Clicked: {_vertex_name(atlas, state.vertex)}, {own}."
    return said


def _values(state: State, source: Any) -> tuple:
    if state.show == "encoding accuracy":
        return source.accuracy(), "validation r", None, None
    if state.show == "noise ceiling":
        return source.ceiling(), "explainable share of variance", False, None
    place = (state.images, state.index, state.shift, state.severity)
    if state.show == "subject's response":
        values = source.measured(state.index)
        return values, "response, z", True, source.image(source.brain, state.index)
    return source.predicted(*place), "response, z", True, source.image(*place)


def _vertex_name(atlas: Any, vertex: int) -> str:
    inside = [name for name, mask in atlas.rois.items() if mask[vertex]]
    side = ("left", "right")[int(atlas.hemisphere[vertex])]
    return f"{side} {' + '.join(inside) or 'no ROI'}, vertex {vertex}"


def figure_of(state: State, source: Any) -> Any:
    """Return the static twin of the widget: a matplotlib figure.

    Raises
    ------
    ConfigError, DataError
        As `select`.
    """
    from bmfl_lab.viz.explore import region_figure
    from bmfl_lab.viz.surface import surface_panel

    state = resolve(state, source)
    found, atlas = select(state, source), source.atlas
    if state.hemispheres != "both":
        atlas = dataclasses.replace(
            atlas, rois={name: mask & _on_side(state, atlas) for name, mask in atlas.rois.items()}
        )
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
    )
    return region_figure(
        panel,
        found["image"],
        found["tuning"],
        source.class_names,
        found["best"],
        region=found["region"],
    )


def _title(state: State, source: Any) -> str:
    if state.show in SHOW[2:]:
        return f"{source.title}: {state.show}"
    if state.show == SHOW[1]:
        return f"{source.title}: response to the subject's image {state.index}"
    shift = f", {state.shift.replace('_', ' ')} {state.severity}" if state.shift else ""
    return f"{source.title}: {state.show} to {state.images} image {state.index}{shift}"


@undisturbed()
def surface_viewer(source: Any, /, *, folder: str | Path = "figures", **state: Any) -> Frame:
    """Show responses and encoding accuracy on the cortex.

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
    cortex, pictures, tuning = Cortex(source.atlas), Pictures((150, 306)), _tuning(source)
    atlas = source.atlas
    regions = (
        [] if atlas is None else [*(g for g in atlas.groups if _exists(atlas, g)), *atlas.rois]
    )
    named = [
        (r if atlas.groups.get(r) or r in atlas.present else f"{r} (absent)", r) for r in regions
    ]
    controls = {
        "show": dropdown("Map", SHOW, first.show),
        "hemispheres": dropdown("Hemispheres", SIDES, first.hemispheres),
        "threshold": slider("Hide below", first.threshold, 0.0, 2.0, 0.05),
        "view": dropdown("View", VIEWS, first.view),
        "region": dropdown("Region", [("none", ""), *named], ""),
        "outlines": w.Checkbox(
            value=first.outlines, description="All outlines", style=LABEL, layout=WIDE
        ),
        **image_controls(source, first),
    }

    def draw(found: dict, state: State) -> str:
        style = {"title": _title(state, source), "unit": found["unit"], "signed": found["signed"]}
        cortex.show(found["values"], found["outline"], **style)
        cortex.show_all(_on_side(state, atlas) if state.outlines else None)
        cortex.look_from(state.view)
        pictures.show(*_pictures(found))
        _draw_tuning(tuning, found)
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
        views=[(cortex.figure, "1 1 430px"), ([pictures, tuning], "1 1 430px")],
        source=source,
        select=select,
        draw=draw,
        adjust=_adjust,
        twin=figure_of,
        folder=folder,
    )
    frame.on_click(cortex.figure, lambda point: frame.set(**_clicked(atlas, cortex.vertex(point))))
    return frame


def _exists(atlas: Any, group: str) -> bool:
    return any(r in atlas.rois and np.any(atlas.rois[r]) for r in atlas.groups[group])


def _clicked(atlas: Any, vertex: int) -> dict[str, Any]:
    inside = [name for name, mask in atlas.rois.items() if vertex >= 0 and mask[vertex]]
    return {"vertex": vertex, "region": inside[0] if inside else ""}


def _adjust(state: State, controls: Any, source: Any) -> State:
    return fit_index(resolve(state, source), controls, source)


def _tuning(source: Any) -> go.Figure:
    bars = {
        "x": list(source.class_names),
        "y": [0.0] * len(source.class_names),
        "marker_color": PALETTE[5],
    }
    made = go.Figure().add_bar(**bars, error_y=ERROR, name="tuning")
    made.update_yaxes(title={"text": "predicted response, z", "font": {"size": 12}})
    made.update_layout(showlegend=False)
    return styled(made, 260, _HINT)


def _pictures(found: dict[str, Any]) -> list[tuple[np.ndarray | None, str]]:
    shown = "image" if found["image"] is not None else "no image"
    best = f"largest response of {found['region']}" if found["best"] else ""
    return [(found["image"], shown), (sheet(found["best"], columns=4), best)]


def _draw_tuning(figure: go.Figure, found: dict[str, Any]) -> None:
    tuning, name = found["tuning"], found["region"]
    with figure.batch_update():
        figure.data[0].y = (
            np.zeros(len(figure.data[0].x)) if tuning is None else np.nan_to_num(tuning["mean"])
        )
        figure.data[0].error_y.array = None if tuning is None else np.nan_to_num(tuning["error"])
        figure.layout.title.text = (
            f"tuning of {name}<br>(mean, standard error)"
            if tuning
            else f"no tuning of {name}"
            if name
            else _HINT
        )
