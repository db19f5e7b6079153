"""A notebook with all widgets on one page, and how its surfaces look; for the browser tests."""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

SETUP = """
import warnings; warnings.simplefilter("ignore")
import widgets
from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.evaluation import Explorer, evaluate_ood
from bmfl_lab.training import load_encoder, load_fusion
study, store = load_study("planted"), FeatureStore(r"{root}/features")
encoder = load_encoder(r"{root}/encoder")
spec = study.backbone
backbone = load_backbone(spec.name, spec.weights, image_size=spec.image_size, resize=spec.resize)
models = {{h: load_fusion(r"{root}/" + h, backbone, encoder=encoder, store=store) for h in ("fusion", "backbone")}}
explorer = Explorer(study, models, encoder, store=store)
"""
WIDGETS = {
    "surface": "surface = widgets.surface_viewer(explorer, region='FFC', view='posterior'); surface",
    "ablation": "ablation = widgets.region_ablation(explorer); ablation",
    "attention": "attention = widgets.attention_explorer(explorer, compare='another image', other_index=9); attention",
    "ood": "result = evaluate_ood(models, study, shifts=[('masked', 1), ('masked', 3), ('masked', 5), ('sketch', 3)], n_boot=20)\n"
    "ood = widgets.ood_explorer(result, explorer); ood",
    "runs": "import pathlib, nbformat\n"
    "from bmfl_lab.records import Record\n"
    "for k in (1, 2):\n"
    "    record = Record('00_quickstart', {'study': 'planted', 'seed': k}, study.summary())\n"
    "    record.extend(evaluate_ood(models, study, n_boot=20, seed=k).rows); record.finish(f'out/run-{k}')\n"
    "done = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# The executed notebook of run 1')])\n"
    "nbformat.write(done, 'out/run-1/executed.ipynb')\n"
    "runs = widgets.run_browser('out'); runs",
}


def coloured(picture):
    """Return the places (x, y) inside coloured spots of a picture of grey cortex, the largest first."""
    rgb = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    colour = rgb.max(2) - rgb.min(2) > 40
    colour[:, int(0.8 * colour.shape[1]) :] = False  # the colour bar
    spots, n = ndimage.label(ndimage.binary_dilation(colour))
    found = []
    for spot in range(1, n + 1):
        y, x = np.nonzero((spots == spot) & colour)
        middle = np.argmin(np.abs(y - np.median(y)) + np.abs(x - np.median(x)))
        found.append((len(y), int(x[middle]), int(y[middle])))
    return [(x, y) for _, x, y in sorted(found, reverse=True)[:8]]


def drawn(canvas):
    """The pixels of a canvas on the page, int (h, w, 3)."""
    canvas.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


def differing(one, other):
    """How much the pixels of two canvases differ, without the frame's edge and the colour bar."""
    height = min(len(one), len(other))  # a canvas may begin within a pixel of the page
    inner = slice(5, height - 5), slice(5, -80)
    return np.abs(one[inner] - other[inner]).max(2)


class Page:
    """A notebook with all five widgets, run once."""

    def __init__(self, lab, watched, models):
        self.lab, self.watched, self.page = lab, watched, watched.page
        name = lab.write("widgets.ipynb", [SETUP.format(root=models), *WIDGETS.values()])
        watched.run_all(lab, name, timeout=600)
        assert watched.kernel_errors() == []
        self.page.wait_for_function(
            "() => document.querySelectorAll('.bmfl-frame').length === 5", timeout=120_000
        )
        self.page.wait_for_timeout(2000)

    def frame(self, name):
        return self.page.locator(".bmfl-frame").nth(list(WIDGETS).index(name))

    def status(self, name):
        return self.frame(name).locator(".bmfl-status, .bmfl-error").first.inner_text()

    def change(self, name, act):
        """Do something and wait until the widget's figures show something else."""
        self.watched.change(list(WIDGETS).index(name), act)

    def press(self, frame, label, key="ArrowRight"):
        self.watched.press(frame, label, key)

    def dot(self, name):
        """Click on coloured places of the cortex, the largest first, until the kernel hears of one."""
        canvas = self.frame(name).locator(".gl-container canvas").first
        canvas.scroll_into_view_if_needed()
        before = self.status(name)
        box = canvas.bounding_box()
        places = coloured(canvas.screenshot())
        assert places, f"no region of {name} can be seen"
        for x, y in places:
            at = box["x"] + x, box["y"] + y
            self.page.mouse.move(at[0] - 3, at[1] - 3)
            self.page.mouse.move(*at, steps=3)
            self.page.wait_for_timeout(350)
            self.page.mouse.click(*at)  # the button is down for less than a frame
            for _ in range(20):
                self.page.wait_for_timeout(250)
                if self.status(name) != before:
                    return True
        return False

    def healthy(self):
        assert self.watched.kernel_errors() == []
        assert self.watched.errors == []
        assert self.watched.hosts <= {"127.0.0.1"}, self.watched.hosts
