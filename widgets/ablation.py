"""Switch regions of the predicted cortex off and watch the prediction change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bmfl_lab.viz.explore import COLOURS, STATES
from widgets.frame import Frame, dropdown, fit_index, image_controls, image_set, slider, undisturbed
from widgets.pictures import Pictures
from widgets.plots import ERROR, Cortex, styled


@dataclass(frozen=True)
class State:
    """What the region ablation shows.

    Parameters
    ----------
    model : str
        Name of the model; the first one with a brain by default.
    images, index, shift, severity
        Which image; of "test" by default.
    regions : tuple of str
        ROIs and groups that are lesioned; empty for none.
    kind : "mean", "zero" or "resample"
        As `bmfl_lab.models.lesion.Lesion`.
    strength : float
        From 0 to 1.
    ood : str
        Out-of-distribution set beside "test"; the study's first by default.
    """

    model: str = ""
    images: str = ""
    index: int = 0
    shift: str = ""
    severity: int = 3
    regions: tuple[str, ...] = ()
    kind: str = "mean"
    strength: float = 1.0
    ood: str = ""


def resolve(state: State, source: Any) -> State:
    """Return the state with the model and the out-of-distribution set filled in."""
    able = [m for m in source.models if source.has_brain(m)] or list(source.models)
    model = state.model or (able[0] if able else "")
    state = dataclasses.replace(
        state, model=model, ood=state.ood or (source.ood[0] if source.ood else "")
    )
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
        ``image``, ``label``, ``probabilities`` (state to (C,)), ``sets``, ``table`` (see
        `Explorer.batch`), ``mask`` (V,) or None, ``said``.

    Raises
    ------
    ConfigError, DataError
        If a model, region or image is missing, or the model has no brain.
    """
    state = resolve(state, source)
    lesion = source.lesion(state.regions, state.kind, state.strength)
    place = (state.images, state.index, state.shift, state.severity)
    probabilities = {"intact": source.probabilities(state.model, *place)}
    if lesion is not None:
        probabilities["lesion"] = source.probabilities(state.model, *place, lesion=lesion)
    sets = tuple(s for s in (source.tested, state.ood) if s)
    table = source.batch(state.model, sets, lesion)
    return {
        "image": source.image(*place),
        "label": source.label(state.images, state.index),
        "probabilities": probabilities,
        "sets": sets,
        "table": table,
        "mask": None if lesion is None else lesion.mask,
        "said": _sentence(state, lesion, probabilities, source, sets, table),
    }


def _sentence(state, lesion, probabilities, source, sets, table) -> str:
    best = {name: source.class_names[int(p.argmax())] for name, p in probabilities.items()}
    if lesion is None:
        return f"No lesion. The model reads this image as {best['intact']}. Choose regions to switch them off."
    parts = []
    for i, name in enumerate(sets):
        a = 100 * table["accuracy"][i]
        wrong, right = table["changed"][i]
        parts.append(
            f"{name} {a[0]:.1f} % to {a[1]:.1f} %, {wrong} of {table['n'][i]} images turned wrong, {right} turned right "
            f"(random lesion of the same size {a[2]:.1f} %)"
        )
    turned = "stays" if best["intact"] == best["lesion"] else f"turns from {best['intact']} to"
    return (
        f"{_lesion_name(state)}: {int(lesion.mask.sum())} of {len(lesion.mask)} vertices. The answer to this image "
        f"{turned} {best['lesion']}. Accuracy: {'; '.join(parts)}."
    )


def _lesion_name(state: State) -> str:
    if not state.regions:
        return "no lesion"
    return f"{' + '.join(state.regions)} lesioned ({state.kind}, strength {state.strength:g})"


def figure_of(state: State, source: Any) -> Any:
    """Return the static twin of the widget: a matplotlib figure.

    Raises
    ------
    ConfigError, DataError
        As `select`.
    """
    from bmfl_lab.viz.explore import lesion_figure

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
    )


class RegionTree(w.VBox):
    """Checkboxes of groups and ROIs; `value` is the tuple of chosen names, a whole group under its own name.

    Parameters
    ----------
    atlas : Atlas or None
        Its regions; absent ones are shown and cannot be ticked. ROIs of a ticked group are shown
        ticked and cannot be changed one by one.
    """

    def __init__(self, atlas: Any):
        self._boxes: dict[str, w.Checkbox] = {}
        self._members: dict[str, tuple[str, ...]] = {}
        self._absent: set[str] = set()
        self._value: tuple[str, ...] = ()
        self._listeners: list[Any] = []
        self._busy = False
        rows = []
        if atlas is not None:
            rows = [self._branch(atlas, g) for g in ("LVC", "HVC") if g in atlas.groups]
            inside = {r for g in ("LVC", "HVC") for r in atlas.groups.get(g, ())}
            rest = [r for r in atlas.rois if r not in inside]
            rows.append(
                w.HBox([self._box(r, atlas) for r in rest], layout={"flex_flow": "row wrap"})
            )
        super().__init__(rows, layout={"max_width": "460px"})

    def _branch(self, atlas: Any, group: str) -> w.Widget:
        top = self._box(group, atlas)
        self._members[group] = tuple(r for r in atlas.groups[group] if r in atlas.rois)
        leaves = [self._box(r, atlas) for r in self._members[group]]
        return w.VBox(
            [top, w.HBox(leaves, layout={"flex_flow": "row wrap", "margin": "0 0 4px 22px"})]
        )

    def _box(self, name: str, atlas: Any) -> w.Checkbox:
        members = (name,) if name in atlas.rois else atlas.groups[name]
        here = any(r in atlas.present for r in members)
        if not here:
            self._absent.add(name)
        box = w.Checkbox(
            value=False,
            description=name if here else f"{name} (absent)",
            disabled=not here,
            indent=False,
            layout={"width": "auto", "margin": "0 12px 0 0"},
        )
        box.observe(lambda change: self._ticked(name, change["new"]), names="value")
        self._boxes[name] = box
        return box

    @property
    def value(self) -> tuple[str, ...]:
        """Names that are chosen."""
        return self._value

    @value.setter
    def value(self, names: tuple[str, ...]) -> None:
        self._busy, self._value = True, tuple(names)
        covered = {r for group, members in self._members.items() if group in names for r in members}
        for name, box in self._boxes.items():
            box.value = name in names or (name in covered and name not in self._absent)
            # an absent region that was asked for can be taken back
            box.disabled = name in covered or (name in self._absent and name not in names)
        self._busy = False

    def _ticked(self, name: str, ticked: bool) -> None:
        if self._busy:
            return
        chosen = (set(self._value) - {name}) | ({name} if ticked else set())
        self.value = tuple(n for n in self._boxes if n in chosen)
        for act in self._listeners:
            act({"new": self._value})

    def observe(self, act: Any, names: Any = None, **rest: Any) -> None:
        """Call ``act({"new": names})`` when a box is ticked; other traits as in ipywidgets."""
        if names == "value":
            self._listeners.append(act)
        else:
            super().observe(act, **({} if names is None else {"names": names}), **rest)


@undisturbed()
def region_ablation(source: Any, /, *, folder: str | Path = "figures", **state: Any) -> Frame:
    """Lesion regions of the predicted cortex and see class probabilities and accuracy change.

    Parameters
    ----------
    source : Explorer
        `bmfl_lab.evaluation.Explorer` of a study with at least one fusion model.
    folder : str or Path
        Where pictures are saved.
    **state
        First state, fields of `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell. Regions are ticked in the tree or clicked on the
        surface.
    """
    first = resolve(State(**state), source)
    cortex, pictures, results = Cortex(source.atlas, height=400), Pictures((150,)), _results(source)
    controls = {
        "model": dropdown("Model", source.models or ("",), first.model),
        "ood": dropdown("OOD set", source.ood or ("",), first.ood),
        **image_controls(source, first),
        "kind": dropdown("Lesion", source.lesions, first.kind),
        "strength": slider("Strength", first.strength, 0.0, 1.0, 0.05),
        "regions": RegionTree(source.atlas),
    }

    def draw(found: dict, state: State) -> str:
        if source.atlas is not None:
            mask = (
                np.zeros(source.atlas.n_vertices)
                if found["mask"] is None
                else found["mask"] * state.strength
            )
            cortex.show(
                mask,
                None,
                title="Click a region to switch it off or on",
                unit="lesion",
                signed=False,
            )
            cortex.set_range(0, 1)
        true = source.class_names[found["label"]] if found["label"] >= 0 else "none"
        pictures.show((found["image"], f"true class:\n{true}"))
        _draw_results(results, found, source)
        return found["said"]

    frame = Frame(
        title=f"Region ablation: {source.title}",
        state=first,
        controls=controls,
        groups={
            "Lesion": ("regions", "kind", "strength"),
            "Image": ("images", "index", "shift", "severity"),
            "Model": ("model", "ood"),
        },
        views=[(cortex.figure, "1 1 340px"), (pictures, "0 1 150px"), (results, "2 1 420px")],
        source=source,
        select=select,
        draw=draw,
        adjust=lambda s, c, e: fit_index(resolve(s, e), c, e),
        twin=figure_of,
        folder=folder,
    )
    frame.on_click(
        cortex.figure,
        lambda point: frame.set(
            regions=toggled(frame.state.regions, source.atlas, cortex.vertex(point))
        ),
    )
    return frame


def toggled(regions: tuple[str, ...], atlas: Any, vertex: int) -> tuple[str, ...]:
    """Return the chosen regions after a click on a vertex: its ROI is switched off, or on again.

    Where a group covers the ROI, the group is replaced by its other members.
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


def _results(source: Any) -> go.Figure:
    made = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.45, 0.55],
        subplot_titles=("class probability, %", "accuracy, %<br>(95 % interval)"),
        horizontal_spacing=0.14,
    )
    for name, colour in zip(STATES[:2], COLOURS):
        look = {"marker_color": colour, "name": name, "legendgroup": name}
        made.add_bar(
            y=list(source.class_names),
            x=[0.0] * len(source.class_names),
            orientation="h",
            **look,
            row=1,
            col=1,
        )
    for name, colour in zip(STATES, COLOURS):
        look = {
            "marker_color": colour,
            "name": name,
            "legendgroup": name,
            "showlegend": name == STATES[2],
        }
        made.add_bar(
            x=[source.tested], y=[0.0], error_y={**ERROR, "symmetric": False}, **look, row=1, col=2
        )
    made.update_xaxes(range=[0, 100], row=1, col=1)
    made.update_yaxes(autorange="reversed", row=1, col=1)
    made.update_yaxes(range=[0, 105], row=1, col=2)
    chance = 100 / max(1, len(source.class_names))
    label = {
        "annotation_text": "chance",
        "annotation_position": "right",
        "annotation_font_size": 11,
    }
    made.add_hline(
        y=chance, line={"dash": "dash", "color": "#6B6B6B", "width": 1}, **label, row=1, col=2
    )
    made.update_layout(
        barmode="group", legend={"orientation": "h", "y": -0.16, "x": 0.2, "traceorder": "normal"}
    )
    figure = styled(made, 400)
    figure.update_layout(
        margin={"l": 10, "r": 56, "t": 62, "b": 70}
    )  # "chance" stands to the right of its line
    return figure


def _draw_results(figure: go.Figure, found: dict[str, Any], source: Any) -> None:
    table, names = (
        found["table"],
        [f"{s}<br>n = {n}" for s, n in zip(found["sets"], found["table"]["n"])],
    )
    with figure.batch_update():
        for trace, name in zip(figure.data[:2], STATES[:2]):
            values = found["probabilities"].get(name)
            trace.x = np.zeros(len(source.class_names)) if values is None else 100 * values
        for column, trace in enumerate(figure.data[2:5]):
            value = 100 * table["accuracy"][:, column]
            trace.x, trace.y = names, np.nan_to_num(value)
            trace.error_y.array = np.nan_to_num(100 * table["high"][:, column] - value)
            trace.error_y.arrayminus = np.nan_to_num(value - 100 * table["low"][:, column])
