"""The frame of all widgets: controls that change a state, and figures that follow it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import ipywidgets as w
from traitlets import TraitError

from bmfl_lab import evaluation
from bmfl_lab.errors import BmflError, ConfigError, message, nearest
from bmfl_lab.files import atomic_path
from bmfl_lab.viz.saving import png_bytes, save_figure
from widgets.figure import LiveFigure, Pictures

if TYPE_CHECKING:
    from bmfl_lab.evaluation import Explorer
    from bmfl_lab.viz.charts import Figure

T = TypeVar("T", bound="ImageState")
_STYLE = """<style>
.bmfl-frame {border:1px solid var(--jp-border-color2,#bbb); padding:10px; gap:8px}
.bmfl-frame, .bmfl-frame .widget-html-content {color:var(--jp-ui-font-color1,#222)}
.bmfl-title {font-size:1.15em; font-weight:600}
.bmfl-status, .bmfl-error {padding:6px 10px; border-left:4px solid; line-height:1.45;
  white-space:normal}
.bmfl-status {border-color:#0072B2}
.bmfl-error {border-color:#D55E00}
.bmfl-heading {font-weight:600}
.bmfl-table {max-height:300px; overflow:auto}
.bmfl-table table {border-collapse:collapse}
.bmfl-table th, .bmfl-table td {padding:3px 8px; max-width:180px; text-align:left;
  vertical-align:top; overflow-wrap:break-word; background:var(--jp-layout-color1,#fff)}
.bmfl-table th {position:sticky; top:0; z-index:1}
.bmfl-table th:first-child, .bmfl-table td:first-child {position:sticky; left:0; min-width:90px}
.bmfl-table th:first-child {z-index:2}
.bmfl-table button {border:0; padding:2px 0; background:none; color:inherit; font:inherit;
  font-weight:600; text-align:left; border-bottom:1px dotted; cursor:pointer}
.bmfl-table a {color:var(--jp-content-link-color,#0072B2); margin-right:6px}
.bmfl-note {line-height:1.4; white-space:normal; color:var(--jp-ui-font-color2,#555)}
.bmfl-card {background:var(--jp-layout-color1,#fff); min-width:0; overflow:hidden}
[data-jp-theme-light="false"] .bmfl-frame {--bmfl-scene:#8f8f8f}
.bmfl-code textarea {font-family:var(--jp-code-font-family,monospace); min-height:10em}
</style>"""
# a cell's outputs in JupyterLab: this style, the picture, and the widget or, without its kernel, a
# line that says that it was not found
_EITHER = """<span class='bmfl-either'></span><style>
.jp-OutputArea-child:has(.bmfl-either) + :has(+ .jp-OutputArea-child .bmfl-frame),
.jp-OutputArea-child:has(.bmfl-either) + * + :not(:has(.bmfl-frame)) {display:none}
</style>"""
LABEL = {"description_width": "96px"}
WIDE = {"width": "300px"}


def explain(error: Exception) -> str:
    """Return what went wrong and what to do about it, in a sentence.

    Parameters
    ----------
    error : Exception
        Any error that a change of the state raised.
    """
    unforeseen = f"this could not be computed ({type(error).__name__}: {error})."
    text = str(error) if isinstance(error, BmflError) else unforeseen
    ending = " Change a control to go on; the figure shows the last state that worked."
    return text[:1].upper() + text[1:] + ending


def code_of(state: object, module: str, sources: Sequence[str]) -> str:
    """Return a cell of code that makes a widget's figure without the widget.

    Parameters
    ----------
    state : dataclass
        State of the widget; only fields that differ from their defaults are written.
    module : str
        Module of `widgets` with ``State`` and ``figure_of``.
    sources : sequence of str
        Code of the objects that the widget was made from.
    """
    changed = [
        f"{f.name}={getattr(state, f.name)!r}"
        for f in dataclasses.fields(state)
        if getattr(state, f.name) != f.default
    ]
    return (
        "from bmfl_lab.viz import show\n"
        f"from widgets.{module} import State, figure_of\n\n"
        f"state = State({', '.join(changed)})\n"
        f"figure = figure_of(state, {', '.join(sources)})\n"
        f"show(figure, '.', '{module}')  # also written to figures/"
    )


def name_of(source: object, otherwise: str) -> str:
    """Return the name of the notebook's variable that holds an object; a path is written out.

    Parameters
    ----------
    source : object
        Object or path that the widget was made from.
    otherwise : str
        Name to return if no variable holds the object.
    """
    if isinstance(source, (str, Path)):
        return repr(str(source))
    from IPython import get_ipython

    known = dict(getattr(get_ipython(), "user_ns", {}))
    names = (name for name, value in known.items() if value is source and name[:1] != "_")
    return next(names, otherwise)


def explorer_of(source: Explorer | str | Path) -> Explorer:
    """Return an explorer; the place of saved models is opened with `Explorer.open`."""
    return evaluation.Explorer.open(source) if isinstance(source, (str, Path)) else source


class Frame(w.VBox):
    """A widget with a title, controls, views, a status panel and buttons.

    Parameters
    ----------
    title : str
        Heading; contains *simulated* if responses are.
    state : dataclass
        First state; frozen.
    controls : mapping of str to ipywidgets control
        Control of each field of the state that a person can change.
    groups : mapping of str to sequence of str
        Heading to the fields whose controls stand under it.
    views : sequence of (widget or list of widgets, str)
        Figures and images, and the CSS ``flex`` of each place on the page.
    source : object
        Object that the numbers come from: an `Explorer` or a widget's own ``Source``.
    select : callable
        ``select(state, source) -> dict`` returns the arrays of a state, without side effects.
    draw : callable
        ``draw(found, state) -> str`` changes the figures and returns the text of the status panel.
    twin : callable
        ``twin(state, source) -> matplotlib Figure``, the ``figure_of`` of the widget's module.
    adjust : callable
        ``adjust(state, controls, source) -> state`` fills in defaults and keeps a field within
        limits that depend on other fields.
    given : mapping of str to object, optional
        Objects that the widget was made from, for "Copy as code", under the names used if no
        variable of the notebook holds them; ``{"explorer": source}`` by default.
    folder : str or Path, default "figures"
        Folder in which pictures are saved.
    weights : callable, optional
        ``weights(state) -> str`` returns which weights the backbone of the shown models has, for
        the line below the figures; that of an `Explorer` by default.
    actions : mapping of str to (str, callable), optional
        Text of a further button to its tooltip and what it does: ``act(frame) -> str`` returns the
        text of the status panel.

    Attributes
    ----------
    state : dataclass
        Current state.
    error : str
        Error of the last change in a sentence; empty if it worked.
    figures : list of LiveFigure
        Figures among the views, in order.
    """

    def __init__(
        self,
        *,
        title: str,
        state: object,
        controls: Mapping[str, w.Widget],
        groups: Mapping[str, Sequence[str]],
        views: Sequence[tuple[w.Widget | Sequence[w.Widget], str]],
        source: object,
        select: Callable[[object, object], dict],
        draw: Callable[[dict, object], str],
        twin: Callable[[object, object], Figure],
        adjust: Callable[[object, Mapping[str, w.Widget], object], object],
        given: Mapping[str, object] | None = None,
        folder: str | Path = "figures",
        weights: Callable[[object], str] | None = None,
        actions: Mapping[str, tuple[str, Callable[[Frame], str]]] | None = None,
    ):
        self._past: list[object] = []
        self.state, self.controls, self.error = state, dict(controls), ""
        self._source, self._select, self._draw, self._adjust = source, select, draw, adjust
        self._twin, self._folder, self._quiet = twin, Path(folder), False
        self._given = {"explorer": source} if given is None else given
        self._weights = (lambda _: f"Backbone: {source.weights}.") if weights is None else weights
        self._module, self._title = twin.__module__.rpartition(".")[2], html.escape(title)
        self._shown = [
            part
            for view, _ in views
            for part in (view if isinstance(view, list) else [view])
            if isinstance(part, (LiveFigure, Pictures))
        ]
        self.figures = [part for part in self._shown if isinstance(part, LiveFigure)]
        self.status, self.note = w.HTML(), w.HTML()
        self.code = w.Textarea(layout={"width": "100%", "display": "none"})
        self.code.add_class("bmfl-code")
        heading = w.HTML(f"{_STYLE}<span class='bmfl-title'>{self._title}</span>")
        panel, cards, buttons = self._panel(groups), _cards(views), self._buttons(actions or {})
        super().__init__([heading, panel, self.status, cards, buttons, self.note, self.code])
        self.add_class("bmfl-frame")
        for name, control in self.controls.items():
            control.observe(
                lambda change, name=name: self._quiet or self.set(**{name: change["new"]}),
                names="value",
            )
        self.set()
        self._past.clear()

    def _panel(self, groups: Mapping[str, Sequence[str]]) -> w.Widget:
        boxes = []
        for heading, names in groups.items():
            title = w.HTML(f"<span class='bmfl-heading'>{html.escape(heading)}</span>")
            rows = [title, *(self.controls[n] for n in names)]
            boxes.append(w.VBox(rows, layout={"margin": "0 14px 0 0"}))
        return w.HBox(boxes, layout={"flex_flow": "row wrap"})

    def _buttons(self, actions: Mapping[str, tuple[str, Callable[[Frame], str]]]) -> w.Widget:
        buttons = []
        for text, tip, act in (
            *((text, tip, lambda act=act: act(self)) for text, (tip, act) in actions.items()),
            ("Undo", "go back to the state before the last change", self.undo),
            (
                "Save figure",
                "save the static figure of this state as PNG, PDF and SVG, and its numbers as CSV",
                self.save_figure,
            ),
            (
                "Save HTML",
                "save the interactive figure as one file for offline use",
                self.save_html,
            ),
            ("Copy as code", "show the code that makes this figure", self.show_code),
        ):
            buttons.append(w.Button(description=text, tooltip=tip))
            buttons[-1].layout.width = f"{max(130, 30 + 8 * len(text))}px"
            buttons[-1].on_click(lambda _, act=act: self._guarded(act))
        return w.HBox(buttons, layout={"flex_flow": "row wrap"})

    def set(self, **changes: object) -> None:
        """Change fields of the state, as the controls do; an error is shown in the status panel.

        Parameters
        ----------
        **changes
            Fields of the state with their new values.
        """
        before = self.state
        self._guarded(lambda: self._step(changes))
        if self.state != before:
            self._past.append(before)

    def undo(self) -> str:
        """Go back to the state before the last change and return the text of the status panel."""
        if not self._past:
            return "There is nothing to undo."
        before = self._past.pop()
        return self._step({f.name: getattr(before, f.name) for f in dataclasses.fields(before)})

    def redraw(self) -> str:
        """Draw the current state again and return the text of the status panel."""
        return self._step({})

    def _step(self, changes: Mapping[str, object]) -> str:
        before, self._quiet = self.state, True
        try:
            state = dataclasses.replace(self.state, **changes)
            self.state = self._adjust(state, self.controls, self._source)
            for name, control in self.controls.items():
                _turn(control, name, getattr(self.state, name))
        except BmflError:
            self.state = before
            raise
        finally:
            self._quiet = False
        said = self._draw(self._select(self.state, self._source), self.state)
        for figure in self.figures:
            figure.update()
        self.note.value = f"<div class='bmfl-note'>{html.escape(self._weights(self.state))}</div>"
        return said

    def _guarded(self, act: Callable[[], str]) -> None:
        """Do something and show its sentence, or that of its error, in the status panel."""
        try:
            said, self.error = act(), ""
        except Exception as error:  # whatever the error is, the widget must stay usable
            self.error = said = explain(error)
        kind, role = ("bmfl-error", "alert") if self.error else ("bmfl-status", "status")
        text = html.escape(said)
        self.status.value = f"<div class='{kind}' role='{role}' aria-live='polite'>{text}</div>"

    def _repr_mimebundle_(self, **options: object) -> dict[str, object]:
        """Return the widget for Jupyter together with its static figure as PNG.

        A page that cannot show widgets, such as a notebook on GitHub, shows the picture.
        """
        bundle = super()._repr_mimebundle_(**options)
        with contextlib.suppress(BmflError):
            picture = png_bytes(self._twin(self.state, self._source))
            bundle["image/png"] = base64.b64encode(picture).decode()
        return bundle

    def _ipython_display_(self, **options: object) -> None:
        """Display the picture and the widget, of which a page shows the one that it can.

        JupyterLab does not fall back on the picture of a bundle when it does not find the widget.
        The picture is therefore an output of its own, which is hidden while the widget is shown.
        """
        from IPython.display import display

        bundle = self._repr_mimebundle_()
        if "image/png" in bundle:
            display({"text/html": _EITHER, "text/plain": ""}, raw=True)
            display({"image/png": bundle.pop("image/png"), "text/plain": self._title}, raw=True)
        display(bundle, raw=True)

    def save_figure(self) -> str:
        """Write the static figure and its numbers, and return a sentence with their paths."""
        path = self._path("png")
        save_figure(self._twin(self.state, self._source), path.parent, path.stem)
        return f"Saved {path}, and beside it .pdf, .svg and .csv (its numbers)"

    def save_html(self) -> str:
        """Write figures and images as one offline file and return a sentence with its path."""
        parts, n_figures = [], 0
        for part in self._shown:
            if part.layout.display != "none":
                figure = isinstance(part, LiveFigure)
                parts.append(part.to_html(n_figures == 0) if figure else part.to_html())
                n_figures += figure
        font = "font:600 17px Helvetica,Arial,sans-serif;margin:12px 28px"
        page = (
            "<!doctype html><html lang='en'><meta charset='utf-8'><title>BMFL lab</title><body>"
            f"<h1 style='{font}'>{self._title}</h1>{''.join(parts)}"
            f"<div style='{font.replace('600 17px', '13px')}'>{self.note.value}</div></body></html>"
        )
        path = self._path("html")
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return f"Saved {path}"

    def show_code(self) -> str:
        """Show the code that makes this figure without the widget, and return a sentence."""
        given = [(value, name) for name, value in self._given.items() if value is not None]
        self.code.value = code_of(self.state, self._module, [name_of(*pair) for pair in given])
        self.code.layout.display = ""
        return "The code is below: copy it with Ctrl-A, Ctrl-C into a new cell."

    def _path(self, ending: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + sum(1 for _ in self._folder.glob(f"{self._module}-*.{ending}"))
        return self._folder / f"{self._module}-{number}.{ending}"


def _turn(control: w.Widget, name: str, value: object) -> None:
    """Let the control of a field show a value."""
    if control.value == value:
        return
    try:
        control.value = value
    except TraitError:
        valid = [v for _, v in getattr(control, "_options_full", ())] or ["a value of its range"]
        raise ConfigError(
            message(f"{name} that the study has", repr(value), nearest(str(value), valid))
        ) from None


def _cards(views: Sequence[tuple[w.Widget | Sequence[w.Widget], str]]) -> w.Widget:
    boxes = []
    for view, flex in views:
        several = isinstance(view, list)
        content = w.VBox(view) if several else view
        layout = {"flex": flex, "display": "block", "margin": "0 8px 8px 0"}
        boxes.append(w.Box([content], layout=layout))
        if not several:
            boxes[-1].add_class("bmfl-card")
            # the card of a hidden figure takes no place either
            pair = (view.layout, "display"), (boxes[-1].layout, "display")
            w.dlink(*pair, lambda shown: shown or "block")
    return w.HBox(boxes, layout={"flex_flow": "row wrap", "align_items": "flex-start"})


def dropdown(label: str, options: Sequence, value: object) -> w.Dropdown:
    """Return a labelled drop-down list.

    Parameters
    ----------
    label : str
        Label to the left of the list.
    options : sequence of str or of (str, object)
        Options, or pairs of the name on the page and the value; at least one.
    value : object
        Value that is chosen; the first option instead if it is none of them, which the frame then
        reports.
    """
    pairs = [o if isinstance(o, tuple) else (str(o), o) for o in options]
    values = [v for _, v in pairs]
    # long names stay whole, up to a limit; the label and the arrow need 150 pixels
    width = min(560, max(300, 150 + 8 * max(len(name) for name, _ in pairs)))
    return w.Dropdown(
        options=list(options),
        value=value if value in values else values[0],
        description=label,
        style=LABEL,
        layout={"width": f"{width}px", "max_width": "100%"},
    )


def slider(label: str, value: float, low: float, high: float, step: float = 1) -> w.Widget:
    """Return a labelled slider that takes effect when it is released; of integers if `step` is one.

    Parameters
    ----------
    label : str
        Label to the left of the slider.
    value, low, high, step : int or float
        First value, limits and step.
    """
    kind = w.IntSlider if isinstance(step, int) else w.FloatSlider
    return kind(
        value=value,
        min=low,
        max=high,
        step=step,
        description=label,
        style=LABEL,
        layout=WIDE,
        continuous_update=False,
    )


def set_options(control: w.Dropdown, options: Sequence) -> None:
    """Give a list other options, [""] without any; the same options keep the choice."""
    options = list(options) or [""]
    if list(control.options) != options:
        control.options = options


@dataclass(frozen=True)
class ImageState:
    """The image that a widget shows.

    Parameters
    ----------
    images : str
        Image set; "test" by default.
    index : int, default 0
        Number of the image in its set, from 0.
    shift : str
        Shift of the image; none by default.
    severity : int, default 3
        Severity of the shift, from 1 to 5.
    """

    images: str = ""
    index: int = 0
    shift: str = ""
    severity: int = 3

    @property
    def place(self) -> tuple[str, int, str, int]:
        """Arguments that choose the image in the methods of `Explorer`."""
        return self.images, self.index, self.shift, self.severity


def image_set(state: T, explorer: Explorer) -> T:
    """Return the state with an image set: "test" by default, or the first one of the study."""
    if state.images or not explorer.sets:
        return state
    images = "test" if "test" in explorer.sets else explorer.sets[0]
    return dataclasses.replace(state, images=images)


def image_controls(explorer: Explorer, state: ImageState) -> dict[str, w.Widget]:
    """Return the controls that choose an image: ``images``, ``index``, ``shift``, ``severity``."""
    shifts = [("none", ""), *((s.replace("_", " "), s) for s in explorer.shifts)]
    return {
        "images": dropdown("Image set", explorer.sets or ("",), state.images),
        "index": slider("Image", 0, 0, 1),
        "shift": dropdown("Shift", shifts, state.shift),
        "severity": slider("Severity", state.severity, 1, 5),
    }


def fit_index(
    state: T, controls: Mapping[str, w.Widget], explorer: Explorer, field: str = "index"
) -> T:
    """Return the state with its image number within the chosen set, and set the slider's end.

    Parameters
    ----------
    state : dataclass
        State with ``images`` and the field.
    controls : mapping of str to control
        Controls of the widget.
    explorer : Explorer
        Explorer with the image sets.
    field : str, default "index"
        Field with the number of an image.
    """
    last = max(0, explorer.size(state.images) - 1)
    controls[field].max = last
    return dataclasses.replace(state, **{field: min(max(getattr(state, field), 0), last)})
