"""What all widgets share: controls that change a state, a figure that follows, a status panel, and three buttons."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import html
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as w
from traitlets import TraitError

from bmfl_lab.errors import BmflError, ConfigError, message, nearest
from bmfl_lab.files import atomic_path
from bmfl_lab.viz.show import DPI
from widgets.live import Live
from widgets.pictures import Pictures

_STYLE = """<style>
.bmfl-frame {border:1px solid var(--jp-border-color2,#bbb); padding:10px; gap:8px}
.bmfl-title {font-size:1.15em; font-weight:600; color:var(--jp-ui-font-color1,#222)}
.bmfl-status, .bmfl-error {padding:6px 10px; border-left:4px solid; line-height:1.45; color:var(--jp-ui-font-color1,#222);
  white-space:normal}
.bmfl-status {border-color:#0072B2}
.bmfl-error {border-color:#D55E00}
.bmfl-heading {font-weight:600; color:var(--jp-ui-font-color1,#222)}
.bmfl-caption {white-space:pre-line; line-height:1.3; color:var(--jp-ui-font-color1,#222)}
.bmfl-figure {display:grid; grid-template-columns:minmax(0,1fr) auto; align-content:start; color:var(--jp-ui-font-color1,#222);
  font:13px Helvetica,Arial,sans-serif}
.bmfl-key-title {grid-column:1/-1; min-height:30px; padding:8px 8px 0; font-size:15px}
.bmfl-key-title:empty, .bmfl-key-bar:empty {display:none}
.bmfl-key-bar {display:flex; align-items:center; padding:0 6px 0 0}
.bmfl-key-bar > div {position:relative; width:14px; height:70%; margin-right:48px}
.bmfl-key-bar > div > span {position:absolute; left:18px; transform:translateY(50%); line-height:1; white-space:nowrap}
.bmfl-key-bar > div > span::before {content:''; position:absolute; left:-4px; top:50%; width:3px; border-top:1px solid}
.bmfl-key-bar > span {writing-mode:vertical-rl}
.bmfl-picture {margin-right:12px}
.bmfl-card {background:var(--jp-layout-color1,#fff); min-width:0; overflow:hidden}
.bmfl-code textarea {font-family:var(--jp-code-font-family,monospace); min-height:10em}
</style>"""
LABEL = {"description_width": "96px"}
WIDE = {"width": "300px"}


def explain(error: Exception) -> str:
    """Return what went wrong and what to do, in words for a person.

    Parameters
    ----------
    error : Exception
        Whatever a callback raised.
    """
    if isinstance(error, BmflError):
        text = str(error)
    else:
        text = f"this could not be computed ({type(error).__name__}: {error})."
    return (
        text[:1].upper()
        + text[1:]
        + " Change a control to go on; the figure shows the last state that worked."
    )


def code_of(state: Any, module: str, sources: Sequence[str]) -> str:
    """Return the cell that makes a widget's figure without the widget.

    Parameters
    ----------
    state : dataclass
        The widget's state; only fields that differ from their defaults are written.
    module : str
        Module in `widgets` that holds ``State`` and ``figure_of``.
    sources : sequence of str
        What the widget was made of, as code.
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
        f"show(figure_of(state, {', '.join(sources)}), '.', '{module}')  # also written to figures/{module}.png"
    )


def name_of(source: Any, otherwise: str) -> str:
    """Return the name under which a notebook knows an object; a path is written out."""
    if isinstance(source, (str, Path)):
        return repr(str(source))
    from IPython import get_ipython

    shell = get_ipython()
    known = {} if shell is None else dict(shell.user_ns)
    return next(
        (name for name, value in known.items() if value is source and name[:1] != "_"), otherwise
    )


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put garbage collection off until the block, or the function under ``@undisturbed()``, ends.

    Looking through all objects of plotly and torch takes up to 0.2 s; after an answer nobody waits
    for it.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class Frame(w.VBox):
    """A widget: title, controls, views, status, buttons.

    Parameters
    ----------
    title : str
        Heading; says *simulated* where responses are.
    state : dataclass
        Frozen; the first state.
    controls : mapping of str to ipywidgets control
        Field of the state to the control that sets it.
    groups : mapping of str to sequence of str
        Heading to the fields under it, in order.
    views : sequence of (plotly Figure, widget or list of them, str)
        What is shown, and the CSS flex of each; figures are changed in place by `draw`.
    source : object
        Where the numbers come from.
    select : callable
        ``select(state, source) -> dict``: pure.
    draw : callable
        ``draw(found, state) -> str``: changes the figures and returns a sentence for the status
        panel.
    twin : callable
        ``twin(state, source) -> matplotlib Figure``, the ``figure_of`` of the widget's module.
    adjust : callable, optional
        ``adjust(state, controls, source) -> state``: limits that depend on other fields.
    given : mapping of str to object, optional
        What a person passed to make the widget, for "copy as code", under names to use where the
        notebook has none; by default the source under the name "explorer".
    folder : str or Path
        Where pictures are saved.

    Attributes
    ----------
    state : dataclass
        The current state.
    seconds : float
        What the last change took in the kernel.
    error : str
        The last change's error in words; empty if it worked.
    """

    def __init__(
        self,
        *,
        title: str,
        state: Any,
        controls: Mapping[str, w.Widget],
        groups: Mapping[str, Sequence[str]],
        views: Sequence[tuple[Any, str]],
        source: Any,
        select: Callable[[Any, Any], dict],
        draw: Callable[[dict, Any], str],
        twin: Callable[[Any, Any], Any],
        adjust: Callable[[Any, Mapping[str, w.Widget], Any], Any] | None = None,
        given: Mapping[str, Any] | None = None,
        folder: str | Path = "figures",
    ):
        self._title = html.escape(title)
        self.state, self.controls, self.seconds, self.error = state, dict(controls), 0.0, ""
        self._source, self._select, self._draw, self._twin, self._adjust = (
            source,
            select,
            draw,
            twin,
            adjust,
        )
        self._given = {"explorer": source} if given is None else given
        self._module, self._folder, self._quiet = (
            twin.__module__.rpartition(".")[2],
            Path(folder),
            False,
        )
        self.figures: dict[int, Live] = {}
        self._parts: list[Live | Pictures] = []
        self._beat = w.Label()
        views = [(self._lively(view), flex) for view, flex in views]
        self.status = w.HTML()
        self.code = w.Textarea(layout={"width": "100%", "display": "none"}, description="")
        self.code.add_class("bmfl-code")
        heading = w.HTML(f"{_STYLE}<span class='bmfl-title'>{self._title}</span>")
        super().__init__(
            [heading, self._panel(groups), self.status, _cards(views), self._buttons(), self.code]
        )
        self.add_class("bmfl-frame")
        for name, control in self.controls.items():
            control.observe(
                lambda change, name=name: self._changed(name, change["new"]), names="value"
            )
        self.set()

    def _lively(self, view: Any) -> w.Widget:
        """Return a widget for a view: figures come to life, also those inside a box."""
        if isinstance(view, (list, tuple)):
            return w.VBox([self._lively(v) for v in view])
        if isinstance(view, w.Widget):
            if isinstance(view, Pictures):
                self._parts.append(view)
            return view
        fixed = (
            sum(t.type == "mesh3d" for t in view.data) - 1
        )  # all but the last mesh are bare brain
        self.figures[id(view)] = live = Live(view, self._beat, max(0, fixed))
        self._parts.append(live)
        return live

    def on_click(self, figure: Any, act: Callable[[dict], None]) -> None:
        """Call ``act(point)`` when a point of one of the widget's figures is clicked."""
        self.figures[id(figure)].on_click(act)

    def _panel(self, groups: Mapping[str, Sequence[str]]) -> w.Widget:
        boxes = []
        for heading, names in groups.items():
            title = w.HTML(f"<span class='bmfl-heading'>{html.escape(heading)}</span>")
            boxes.append(
                w.VBox([title, *(self.controls[n] for n in names)], layout={"margin": "0 14px 0 0"})
            )
        return w.HBox(boxes, layout={"flex_flow": "row wrap"})

    def _buttons(self) -> w.Widget:
        found = []
        for text, tip, act in (
            ("Save PNG", "write the static twin of this figure", self.save_png),
            (
                "Save HTML",
                "write the interactive figure as one file that needs no network",
                self.save_html,
            ),
            (
                "Copy as code",
                "show the cell that makes this figure without the widget",
                self.show_code,
            ),
        ):
            button = w.Button(description=text, tooltip=tip, layout={"width": "130px"})
            button.on_click(lambda _, act=act: self._guarded(act))
            found.append(button)
        return w.HBox(found, layout={"flex_flow": "row wrap"})

    def _changed(self, name: str, value: Any) -> None:
        if not self._quiet:
            self.set(**{name: value})

    def set(self, **changes: Any) -> None:
        """Change fields of the state, as the controls do; errors go to the panel."""
        start = time.perf_counter()
        with undisturbed():
            self._guarded(lambda: self._step(changes))
        self.seconds = time.perf_counter() - start

    def _step(self, changes: Mapping[str, Any]) -> str:
        before, self._quiet = self.state, True
        try:
            self.state = dataclasses.replace(self.state, **changes)
            if self._adjust is not None:
                self.state = self._adjust(self.state, self.controls, self._source)
            for name, control in self.controls.items():
                self._turn(name, control)
        except BmflError:
            self.state = before
            raise
        finally:
            self._quiet = False
        said = self._draw(self._select(self.state, self._source), self.state)
        for figure in self.figures.values():
            figure.push()
        self._beat.value = str(int(self._beat.value or 0) + 1)
        return said

    def _turn(self, name: str, control: w.Widget) -> None:
        """Let a control show the state's value."""
        value = getattr(self.state, name)
        if control.value == value:
            return
        try:
            control.value = value
        except TraitError:
            valid = [v for _, v in getattr(control, "_options_full", ())] or [
                "a value of its range"
            ]
            raise ConfigError(
                message(f"{name} that the study has", repr(value), nearest(str(value), valid))
            ) from None

    def _guarded(self, act: Callable[[], str | None]) -> None:
        try:
            said, self.error = act() or "", ""
        except (
            Exception
        ) as error:  # whatever happens, the person gets a sentence and a widget that still works
            self.error = said = explain(error)
        kind, role = ("bmfl-error", "alert") if self.error else ("bmfl-status", "status")
        self.status.value = (
            f"<div class='{kind}' role='{role}' aria-live='polite'>{html.escape(said)}</div>"
        )

    def save_png(self) -> str:
        """Write the static twin beside the notebook and return a sentence with its path."""
        path = self._path("png")
        with atomic_path(path) as temporary:
            self._twin(self.state, self._source).savefig(
                temporary, format="png", dpi=DPI, bbox_inches="tight"
            )
        return f"Saved {path}"

    def save_html(self) -> str:
        """Write figures and pictures as one self-contained file and return a sentence with its path."""
        if not self._parts:
            raise ConfigError(
                message("an interactive figure", "none in this widget", "save PNG instead")
            )
        parts, known = [], False
        for part in self._parts:
            parts.append(
                part.to_html()
                if isinstance(part, Pictures)
                else part.to_html(with_library=not known)
            )
            known = known or bool(parts[-1] and isinstance(part, Live))
        path = self._path("html")
        with atomic_path(path) as temporary:
            temporary.write_text(
                "<!doctype html><html lang='en'><meta charset='utf-8'><title>BMFL lab</title><body>"
                + f"<h1 style='font:600 17px Helvetica,Arial,sans-serif;margin:12px 28px'>{self._title}</h1>"
                + "".join(parts)
                + "</body></html>",
                encoding="utf-8",
            )
        return f"Saved {path}"

    def show_code(self) -> str:
        """Show the cell that makes this figure without the widget."""
        names = [
            name_of(value, otherwise)
            for otherwise, value in self._given.items()
            if value is not None
        ]
        self.code.value = code_of(self.state, self._module, names)
        self.code.layout.display = ""
        return "The cell is below: copy it with Ctrl-A, Ctrl-C into a new cell."

    def _path(self, ending: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + sum(1 for _ in self._folder.glob(f"{self._module}-*.{ending}"))
        return self._folder / f"{self._module}-{number}.{ending}"


def _cards(views: Sequence[tuple[w.Widget, str]]) -> w.Widget:
    boxes = []
    for view, flex in views:
        box = w.Box([view], layout={"flex": flex, "display": "block", "margin": "0 8px 8px 0"})
        if not isinstance(view, w.VBox):
            box.add_class("bmfl-card")
            # the card of a hidden figure gives its place up, too
            w.dlink(
                (view.layout, "display"), (box.layout, "display"), lambda shown: shown or "block"
            )
        boxes.append(box)
    return w.HBox(boxes, layout={"flex_flow": "row wrap", "align_items": "flex-start"})


def dropdown(label: str, options: Sequence, value: Any) -> w.Dropdown:
    """Return a labelled drop-down list; a value that is no option is left to the frame's panel to name."""
    options = list(options)
    values = [o[1] if isinstance(o, tuple) else o for o in options]
    value = value if value in values else values[0]
    # long names stay whole, up to a limit; the label and the arrow take the rest
    longest = max(len(str(o[0] if isinstance(o, tuple) else o)) for o in options)
    layout = {"width": f"{min(560, max(300, 150 + 8 * longest))}px", "max_width": "100%"}
    return w.Dropdown(options=options, value=value, description=label, style=LABEL, layout=layout)


def image_set(state: Any, explorer: Any) -> Any:
    """Return the state with an image set: "test" where none is named, or the first one of a study without it."""
    if state.images or not explorer.sets:
        return state
    return dataclasses.replace(
        state, images="test" if "test" in explorer.sets else explorer.sets[0]
    )


def slider(label: str, value: float, low: float, high: float, step: float = 1) -> w.Widget:
    """Return a labelled slider that answers when it is let go; of integers if `step` is one."""
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


def image_controls(explorer: Any, state: Any) -> dict[str, w.Widget]:
    """Return the controls that choose an image: ``images``, ``index``, ``shift``, ``severity``."""
    shifts = [("none", ""), *((s.replace("_", " "), s) for s in explorer.shifts)]
    return {
        "images": dropdown("Image set", explorer.sets or ("",), state.images),
        "index": slider("Image", 0, 0, 1),
        "shift": dropdown("Shift", shifts, state.shift),
        "severity": slider("Severity", state.severity, 1, 5),
    }


def fit_index(
    state: Any, controls: Mapping[str, w.Widget], explorer: Any, field: str = "index"
) -> Any:
    """Return the state with its image number inside the chosen set, and set the slider's end."""
    last = max(0, explorer.size(state.images) - 1)
    index = min(max(getattr(state, field), 0), last)
    if field in controls:
        controls[field].max = last
    return dataclasses.replace(state, **{field: index})
