"""What opening and changing a widget takes, in the kernel and from a key press to the drawn figure in a browser.

Run by hand: ``python tests/benchmarks/bench_widgets.py [planted|demo] [--browser] [--models FOLDER]``. The aims: a
widget opens within 3 s, a lesion or an image answers within 300 ms and a map within 100 ms, on the demo and two quiet
cores. Beside each time in the kernel stands the processor time it took, which other work on the machine hardly changes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

REGIONS = [("V1",), ("V2",), ("HVC",), ("LVC",), ("FFC",), ("V1", "V2"), ("V1", "HVC")]
LOAD = """
import time; start = time.perf_counter()
import warnings; warnings.simplefilter("ignore")
from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.evaluation import Explorer
from bmfl_lab.training import load_encoder, load_fusion
study, store = load_study("{name}"), FeatureStore()
encoder, spec = load_encoder(r"{folder}/encoder"), study.backbone
backbone = load_backbone(spec.name, spec.weights, image_size=spec.image_size, resize=spec.resize)
model = load_fusion(r"{folder}/fusion", backbone, encoder=encoder, store=store)
explorer = Explorer(study, {{"fusion": model}}, encoder, store=store)
"""


def train(name, folder):
    """Train what the widgets show, once, and save it."""
    from bmfl_lab import load_study
    from bmfl_lab.backbones import FeatureStore
    from bmfl_lab.training import presets, train_brain_encoder, train_fusion

    if (folder / "fusion").is_dir():
        return
    study, store = load_study(name), FeatureStore()
    config, encoder_config = presets("tiny" if name == "planted" else "small", epochs=2)
    encoder = train_brain_encoder(encoder_config, study, store=store)
    encoder.save(folder / "encoder")
    train_fusion(config, study, encoder=encoder, store=store).save(folder / "fusion")


def timed(act, n=7):
    wall, busy = [], []
    for i in range(n):
        start, cpu = time.perf_counter(), time.process_time()
        act(i)
        wall.append(1000 * (time.perf_counter() - start))
        busy.append(1000 * (time.process_time() - cpu))
    return wall, busy


def report(label, wall, busy=None):
    cpu = "" if busy is None else f"   processor time median {statistics.median(busy):6.0f} ms"
    print(f"{label:<36} median {statistics.median(wall):6.0f} ms   largest {max(wall):6.0f} ms   n = {len(wall)}{cpu}", flush=True)


def in_kernel(name, folder):
    start = time.perf_counter()
    import widgets

    for kind in widgets.__all__:
        getattr(widgets, kind)
    print(f"importing the widgets: {time.perf_counter() - start:.2f} s")
    names = {}
    exec(LOAD.format(name=name, folder=folder), names)
    explorer, frames = names["explorer"], {}
    for kind in ("region_ablation", "surface_viewer", "attention_explorer"):
        report(f"{kind} opens", *timed(lambda i, kind=kind: frames.update({kind: getattr(widgets, kind)(explorer)}), 1))
    ablation, surface, attention = frames.values()
    rows = {
        "lesion": lambda i: ablation.set(regions=REGIONS[i]),
        "image under a lesion": lambda i: ablation.set(index=i + 1),
        "image on the cortex": lambda i: surface.set(index=i + 20),
        "image with attention": lambda i: attention.set(index=i + 40),
        "shifted image": lambda i: ablation.set(shift="masked", index=i + 60),
        "map swap": lambda i: surface.set(show=("encoding accuracy", "predicted response")[i % 2]),
    }
    for label, act in rows.items():
        report(label, *timed(act))
    assert not (ablation.error or surface.error or attention.error), (ablation.error, surface.error, attention.error)


DRAWN = """() => [...document.querySelectorAll('.bmfl-frame .js-plotly-plot')].filter(e => e.offsetParent)
    .map(e => Number(e.dataset.change ?? 0))"""
MAP = DRAWN.replace(".map(", ".filter(e => e._fullLayout?.scene).map(")


def in_browser(name, folder):
    """Time from a key press or a choice until every figure of the widget is drawn anew."""
    import jupyter_page

    cells = [LOAD.format(name=name, folder=folder), "import widgets\nframe = widgets.{kind}(explorer); frame"]
    acts = {
        "region_ablation": {
            "image": lambda p: p.keyboard.press("ArrowRight"),
            "lesion": lambda p: p.keyboard.press("Space"),
        },
        "surface_viewer": {"image": lambda p: p.keyboard.press("ArrowRight"), "map swap": lambda p: p.keyboard.press("ArrowDown")},
        "attention_explorer": {"image": lambda p: p.keyboard.press("ArrowRight")},
    }
    focus = {
        "image": lambda p: p.locator(".widget-slider", has=p.locator(".widget-label:text-is('Image')")).locator(".noUi-handle").focus(),
        "lesion": lambda p: p.get_by_label("HVC", exact=True).focus(),
        "map swap": lambda p: p.get_by_label("Map", exact=True).focus(),
    }
    with (
        tempfile.TemporaryDirectory() as place,
        jupyter_page.running_lab(Path(place)) as lab,
        jupyter_page.running_chrome() as chrome,
        jupyter_page.watching(chrome, lab) as opened,
    ):
        for kind, steps in acts.items():
            watched = opened(width=1280)
            page = watched.page
            watched.run_all(lab, lab.write(f"{kind}.ipynb", cells[:1]), timeout=600)
            page.evaluate(
                """(code) => { const cells = window.jupyterapp.shell.currentWidget.content;
                cells.activeCellIndex = cells.widgets.length - 1; window.jupyterapp.commands.execute('notebook:insert-cell-below');
                cells.activeCell.model.sharedModel.setSource(code); }""",
                cells[1].format(kind=kind),
            )
            start = time.perf_counter()
            page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell') }")
            page.wait_for_function(f"() => {{ const found = ({DRAWN})(); return found.length && found.every(k => k > 0) }}", timeout=120_000)
            print(f"{kind} opens in the browser: {time.perf_counter() - start:.2f} s", flush=True)
            page.wait_for_timeout(2000)
            page_time = page.context.new_cdp_session(page)
            page_time.send("Performance.enable", {"timeDomain": "threadTicks"})
            for label, press in steps.items():
                focus[label](page)
                report(f"{kind}: {label}", *zip(*(one_change(page, page_time, press) for _ in range(7))))
                if kind == "surface_viewer":
                    wall = [one_change(page, page_time, press, MAP)[0] for _ in range(7)]
                    report(f"{kind}: {label}, the cortex alone", wall)
            assert watched.kernel_errors() == [] and watched.errors == []


def page_busy(session):
    """Return the processor time of the page's own thread so far, in ms; drawing by the graphics process is apart."""
    found = session.send("Performance.getMetrics")["metrics"]
    return 1000 * next(m["value"] for m in found if m["name"] == "TaskDuration")


def one_change(page, session, press, drawn=DRAWN):
    """Return the ms from a key press until the figures are drawn, and those the page's own thread was busy."""
    before, busy = page.evaluate(drawn), page_busy(session)
    page.evaluate(
        f"""(before) => {{ window.bmflTaken = null; const start = {{}};
        document.addEventListener('keydown', () => {{ start.at ??= performance.now() }}, {{once: true, capture: true}});
        const look = () => {{ const now = ({drawn})(); if (start.at && now.every((k, i) => k > before[i]))
            window.bmflTaken = performance.now() - start.at; else setTimeout(look, 4) }}; look() }}""",
        before,
    )
    press(page)
    page.wait_for_function("() => window.bmflTaken !== null", timeout=60_000)
    taken, busy = page.evaluate("() => window.bmflTaken"), page_busy(session) - busy
    page.wait_for_timeout(300)
    return taken, busy


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="planted")
    parser.add_argument("--browser", action="store_true", help="also from a key press to the picture, in Chromium")
    parser.add_argument("--models", default="", help="folder for the trained models; a temporary one by default")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(told.models or temporary) / told.name
        train(told.name, folder)
        print(json.dumps({"study": told.name}))
        in_kernel(told.name, folder)
        if told.browser:
            in_browser(told.name, folder)


if __name__ == "__main__":
    main()
