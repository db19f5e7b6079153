"""Lesion regions of the predicted cortex and see how the model's predictions change."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go
import traitlets
from plotly.subplots import make_subplots

from bmfl_lab.errors import BmflError
from bmfl_lab.viz.charts import PALETTE
from bmfl_lab.viz.explore import COLOURS, KEPT_COLOURS, STATES, lesion_figure
from bmfl_lab.viz.surface_interactive import VIEWS
from widgets.figure import ERROR, Cortex, LiveFigure, Pictures, styled
from widgets.frame import (
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
    from bmfl_lab.models.lesion import Lesion
    from bmfl_lab.viz.charts import Figure

# sky blue for intact and vermilion for lesioned vertices: never grey as cortex
_INTACT, _LESIONED = PALETTE[5], PALETTE[1]
_LESION_COLOURS = [[0.0, _INTACT], [0.5, _INTACT], [0.5, _LESIONED], [1.0, _LESIONED]]
_TITLE = "Click a region to lesion or restore it"
_KEY = [("■", _INTACT, "intact"), ("■", _LESIONED, "lesioned")]
_MOST_KEPT = 4


@dataclass(frozen=True)
class State(ImageState):
    """State of the region ablation, beside the image of `ImageState`.

    Parameters
    ----------
    model : str
        Name of the model; the first one that reads responses by default.
    regions : tuple of str
        ROIs and groups that are lesioned; none by default.
    kind : "mean", "zero" or "resample", default "mean"
        Kind of lesion, see `bmfl_lab.models.lesion.Lesion`.
    strength : float, default 1.0
        Strength of the lesion, from 0 to 1.
    ood : str
        Out-of-distribution set beside the test set; the study's first one by default.
    kept : tuple of tuple of str
        Regions of further lesions, of the same kind and strength, whose accuracy stands beside that
        of `regions`; none by default.
    view : str, default ""
        Direction of the camera, a key of `bmfl_lab.viz.surface_interactive.VIEWS`; by default the
        one that shows most of the first lesion.
    """

    model: str = ""
    regions: tuple[str, ...] = ()
    kind: str = "mean"
    strength: float = 1.0
    ood: str = ""
    kept: tuple[tuple[str, ...], ...] = ()
    view: str = ""


def resolve(state: State, source: Explorer) -> State:
    """Return the state with a model, an image set and an out-of-distribution set filled in."""
    able = [m for m in source.models if source.has_brain(m)] or source.models
    model = state.model or next(iter(able), "")
    ood = state.ood or next(iter(source.ood), "")
    return image_set(dataclasses.replace(state, model=model, ood=ood), source)


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
        ``image`` uint8 (S, S, 3); ``label``, the number of its class, -1 for none;
        ``probabilities``, "intact" and, under a lesion, "lesion" to float (C,); ``sets``, the names
        of the image sets; ``table``, their accuracies as `Explorer.batch` returns them; ``mask``,
        the lesioned vertices, bool (V,), or None; ``kept``, the name of each further lesion to its
        table of accuracies; ``said``, the text of the status panel.

    Raises
    ------
    ConfigError, DataError
        If a model, region or image is missing, or the model reads no responses.
    """
    state = resolve(state, source)
    lesion = source.lesion(state.regions, state.kind, state.strength)
    probabilities = {"intact": source.probabilities(state.model, *state.place)}
    if lesion is not None:
        probabilities["lesion"] = source.probabilities(state.model, *state.place, lesion=lesion)
    sets = tuple(s for s in (source.tested, state.ood) if s)
    found = {
        "image": source.image(*state.place),
        "label": source.label(state.images, state.index),
        "probabilities": probabilities,
        "sets": sets,
        "table": source.batch(state.model, sets, lesion),
        "mask": None if lesion is None else lesion.mask,
        "kept": {
            " + ".join(regions): source.batch(
                state.model, sets, source.lesion(regions, state.kind, state.strength)
            )
            for regions in state.kept
        },
    }
    return {**found, "said": _sentence(state, lesion, found, source)}


def _sentence(
    state: State, lesion: Lesion | None, found: dict[str, object], source: Explorer
) -> str:
    best = {k: source.class_names[int(p.argmax())] for k, p in found["probabilities"].items()}
    if lesion is None:
        return (
            f"No lesion. The model classifies this image as {best['intact']}. "
            "Choose regions to lesion them."
        )
    parts, table = [], found["table"]
    for name, n, (wrong, right), accuracy in zip(
        found["sets"], table["n"], table["changed"], 100 * table["accuracy"]
    ):
        parts.append(
            f"{name} {accuracy[0]:.1f} % to {accuracy[1]:.1f} %, {wrong} of {n} images turned "
            f"wrong, {right} turned right{_control(lesion, table, accuracy[2])}"
        )
    turned = "stays" if best["intact"] == best["lesion"] else f"turns from {best['intact']} to"
    return (
        f"{_lesion_name(state)}: {int(lesion.mask.sum())} of {len(lesion.mask)} vertices. "
        f"The predicted class of this image {turned} {best['lesion']}. "
        f"Accuracy: {'; '.join(parts)}."
    )


def _control(lesion: Lesion, table: dict[str, np.ndarray], accuracy: float) -> str:
    n, compared = int(lesion.mask.sum()), int(table["n_control"])
    if not compared:
        return " (no control: no vertex is outside)"
    if compared < n:
        return f" (control, only the {compared} vertices that are outside: {accuracy:.1f} %)"
    return f" (as many random vertices outside: {accuracy:.1f} %)"


def _lesion_name(state: State) -> str:
    if not state.regions:
        return "no lesion"
    return f"{' + '.join(state.regions)} lesioned ({state.kind}, strength {state.strength:g})"


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
        If a model, region or image is missing, or the model reads no responses.
    """
    source = explorer_of(source)
    found, state = select(state, source), resolve(state, source)
    return lesion_figure(
        found["image"],
        found["probabilities"],
        source.class_names,
        found["label"],
        found["table"],
        found["sets"],
        title=f"{source.title}, {state.model}: {_lesion_name(state)}",
        chance=1 / max(1, len(source.class_names)),
        kept=found["kept"],
    )


class RegionTree(w.VBox):
    """Checkboxes of groups and their ROIs.

    Parameters
    ----------
    atlas : Atlas or None
        Atlas with the regions. Regions that are absent in the subject are shown, but cannot be
        ticked. ROIs of a ticked group are shown ticked and cannot be changed one by one.

    Attributes
    ----------
    value : tuple of str
        Names that are chosen; a whole group is named by itself, without its ROIs.
    """

    value = traitlets.Tuple()

    def __init__(self, atlas: Atlas | None):
        self._boxes: dict[str, w.Checkbox] = {}
        self._members: dict[str, tuple[str, ...]] = {}
        self._absent: set[str] = set()
        self._busy = False
        rows = []
        wrapped = {"flex_flow": "row wrap"}
        if atlas is not None:
            for group in ("LVC", "HVC"):
                if group in atlas.groups:
                    top, members = self._box(group, atlas), atlas.groups[group]
                    self._members[group] = tuple(r for r in members if r in atlas.rois)
                    leaves = [self._box(r, atlas) for r in self._members[group]]
                    inner = w.HBox(leaves, layout={**wrapped, "margin": "0 0 4px 22px"})
                    rows.append(w.VBox([top, inner]))
            rest = [self._box(r, atlas) for r in atlas.rois if r not in self._boxes]
            rows.append(w.HBox(rest, layout=wrapped))
        super().__init__(rows, layout={"max_width": "460px"})

    def _box(self, name: str, atlas: Atlas) -> w.Checkbox:
        members = (name,) if name in atlas.rois else atlas.groups[name]
        present = any(r in atlas.present for r in members)
        if not present:
            self._absent.add(name)
        box = w.Checkbox(
            value=False,
            description=name if present else f"{name} (absent)",
            disabled=not present,
            indent=False,
            layout={"width": "auto", "margin": "0 12px 0 0"},
        )
        box.observe(lambda change: self._ticked(name, change["new"]), names="value")
        self._boxes[name] = box
        return box

    @traitlets.observe("value")
    def _show(self, change: dict[str, object]) -> None:
        names, self._busy = change["new"], True
        covered = {r for group in names for r in self._members.get(group, ())}
        for name, box in self._boxes.items():
            box.value = name in names or (name in covered and name not in self._absent)
            # an absent region that was chosen can be unticked
            box.disabled = name in covered or (name in self._absent and name not in names)
        self._busy = False

    def _ticked(self, name: str, ticked: bool) -> None:
        if not self._busy:
            chosen = {*self.value, name} if ticked else {*self.value} - {name}
            self.value = tuple(n for n in self._boxes if n in chosen)


def region_ablation(
    source: Explorer | str | Path, /, *, folder: str | Path = "figures", **state
) -> Frame:
    """Lesion regions of the predicted cortex and see class probabilities and accuracy change.

    Parameters
    ----------
    source : Explorer, str or Path
        Explorer of a study with at least one fusion model, or the place of saved models: the
        folder of a run, a spec or its name, or the folder of one model.
    folder : str or Path, default "figures"
        Folder in which pictures are saved.
    **state
        Fields of the first `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell. Regions are ticked in the tree or clicked on the
        surface.
    """
    given, source = source, explorer_of(source)
    first = resolve(State(**state), source)
    cortex, pictures = Cortex(source.atlas, height=400), Pictures((150,))
    lesioned = None
    with contextlib.suppress(BmflError):  # the frame reports an unknown region
        lesioned = source.mask(first.regions)
    first = dataclasses.replace(first, view=first.view or cortex.best_view(lesioned))
    results = LiveFigure(_results(source))
    controls = {
        "model": dropdown("Model", source.models or ("",), first.model),
        "ood": dropdown("OOD set", source.ood or ("",), first.ood),
        **image_controls(source, first),
        "kind": dropdown("Lesion", source.lesions, first.kind),
        "strength": slider("Strength", first.strength, 0.0, 1.0, 0.05),
        "regions": RegionTree(source.atlas),
        "view": dropdown("View", VIEWS, first.view),
    }

    def draw(found: dict, state: State) -> str:
        if cortex.surface is not None:
            none = np.zeros(source.atlas.n_vertices)
            _show_lesion(cortex, none if found["mask"] is None else found["mask"], state.view)
        true = source.class_names[found["label"]] if found["label"] >= 0 else "none"
        pictures.show((found["image"], f"true class:\n{true}"))
        _draw_results(results.plot, found)
        return found["said"]

    frame = Frame(
        title=f"Region ablation: {source.title}",
        state=first,
        controls=controls,
        groups={
            "Lesion": ("regions", "kind", "strength"),
            "Image": ("images", "index", "shift", "severity"),
            "Model": ("model", "ood"),
            "Cortex": ("view",),
        },
        actions={
            "Keep beside": ("keep the accuracy of this lesion beside the next ones", _keep),
            "Clear kept": ("remove the lesions that were kept", _clear),
        },
        views=[(cortex, "1 1 340px"), (pictures, "0 1 150px"), (results, "2 1 420px")],
        source=source,
        select=select,
        draw=draw,
        adjust=lambda s, c, e: fit_index(resolve(s, e), c, e),
        twin=figure_of,
        given={"explorer": given},
        folder=folder,
    )

    def clicked(point: dict[str, object]) -> None:
        frame.set(regions=toggled(frame.state.regions, source.atlas, cortex.vertex(point)))

    cortex.on_click(clicked)
    return frame


def _show_lesion(cortex: Cortex, mask: np.ndarray, view: str) -> None:
    """Show the lesioned vertices, (V,), in two colours with a key, and the borders of all ROIs."""
    look = {"signed": False, "borders": np.ones(len(mask), dtype=bool), "view": view}
    look["colours"] = _KEY
    cortex.show(np.asarray(mask, float), title=_TITLE, unit="lesioned", **look)
    two = {"cmin": 0, "cmax": 1, "colorscale": _LESION_COLOURS, "showscale": False}
    cortex.plot.data[-1].update(two)


def _keep(frame: Frame) -> str:
    """Keep the current lesion beside the next ones and return the text of the status panel."""
    regions, kept = frame.state.regions, frame.state.kept
    if not regions or regions in kept:
        return "Choose regions first: this lesion is empty or kept already."
    frame.set(kept=(*kept, regions)[-_MOST_KEPT:])
    return f"Kept {' + '.join(regions)}. Choose other regions to compare them."


def _clear(frame: Frame) -> str:
    frame.set(kept=())
    return frame.redraw()


def toggled(regions: tuple[str, ...], atlas: Atlas, vertex: int) -> tuple[str, ...]:
    """Return the lesioned regions after a click, which lesions the ROI of a vertex or restores it.

    Parameters
    ----------
    regions : tuple of str
        ROIs and groups lesioned before.
    atlas : Atlas
        Atlas with the regions.
    vertex : int
        Vertex that was clicked, -1 for none.

    Notes
    -----
    A lesioned group that contains the restored ROI is replaced by its other members.
    """
    inside = [name for name, mask in atlas.rois.items() if vertex >= 0 and mask[vertex]]
    if not inside:
        return regions
    roi = inside[0]
    covering = [r for r in regions if r in atlas.groups and roi in atlas.groups[r]]
    if roi not in regions and not covering:
        return (*regions, roi)
    rest = [m for group in covering for m in atlas.members(group) if m != roi]
    return tuple(dict.fromkeys([*(r for r in regions if r != roi and r not in covering), *rest]))


def _results(source: Explorer) -> go.Figure:
    made = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.45, 0.55],
        subplot_titles=("class probability, %", "accuracy, %<br>(95 % interval)"),
        horizontal_spacing=0.14,
    )
    names, zeros = list(source.class_names), [0.0] * len(source.class_names)
    for name, colour in zip(STATES[:2], COLOURS):
        look = {"marker_color": colour, "name": name, "legendgroup": name}
        made.add_bar(y=names, x=zeros, orientation="h", **look, row=1, col=1)
    for name, colour in zip(STATES, COLOURS):
        look = {"marker_color": colour, "name": name, "legendgroup": name}
        look |= {"showlegend": name == STATES[2], "error_y": {**ERROR, "symmetric": False}}
        made.add_bar(x=[source.tested], y=[0.0], **look, row=1, col=2)
    made.update_xaxes(range=[0, 100], row=1, col=1)
    made.update_yaxes(autorange="reversed", row=1, col=1)
    made.update_yaxes(range=[0, 105], row=1, col=2)
    made.add_hline(
        y=100 / max(1, len(names)),
        line={"dash": "dash", "color": "#6B6B6B", "width": 1},
        annotation={"text": "chance", "font": {"size": 11}},
        annotation_position="right",
        row=1,
        col=2,
    )
    made.update_layout(
        barmode="group",
        # at the bottom of the figure, below the names of the sets
        legend={
            "orientation": "h",
            "traceorder": "normal",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
        },
    )
    # "chance" stands to the right of its line
    return styled(made, 430).update_layout(margin={"l": 10, "r": 56, "t": 62, "b": 104})


def _draw_results(figure: go.Figure, found: dict[str, object]) -> None:
    table = found["table"]
    names = [f"{s}<br>n = {n}" for s, n in zip(found["sets"], table["n"])]
    for trace, name in zip(figure.data[:2], STATES[:2]):
        trace.x = 100 * found["probabilities"].get(name, np.zeros(len(trace.y)))
    for column, trace in enumerate(figure.data[2:5]):
        low, value, high = (100 * table[k][:, column] for k in ("low", "accuracy", "high"))
        trace.x, trace.y = names, np.nan_to_num(value)
        trace.error_y.array = np.nan_to_num(high - value)
        trace.error_y.arrayminus = np.nan_to_num(value - low)
    figure.data = figure.data[:5]
    for (name, other), colour in zip(found["kept"].items(), KEPT_COLOURS):
        low, value, high = (100 * other[k][:, 1] for k in ("low", "accuracy", "high"))
        error = {**ERROR, "symmetric": False, "array": high - value, "arrayminus": value - low}
        look = {"marker_color": colour, "name": f"kept: {name}", "error_y": error}
        figure.add_bar(x=names, y=value, **look, row=1, col=2)
