"""The remedies of `bmfl_lab.data.shifts`, each followed."""

import re

import numpy as np
from following import follows
from PIL import Image

from bmfl_lab.data.shifts import SHIFTS, apply_shift, shifted
from bmfl_lab.data.shifts.made import adain
from bmfl_lab.data.stimuli import from_arrays

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def squeeze(x):
    """Encode an image (H, W, 3) as features (3, H, W)."""
    return np.moveaxis(x, 2, 0)


def unsqueeze(features):
    """Undo `squeeze`."""
    return np.moveaxis(features, 0, 2)


@follows(
    ("data/shifts/__init__.py", "choose an integer from 1 to 5"),
    ("data/shifts/__init__.py", "convert it to 8-bit RGB, or enlarge it"),
    ("data/shifts/__init__.py", "convert it to 8-bit RGB, or enlarge it"),
    ("data/shifts/__init__.py", "leave it out, or read help(SHIFTS[{}]) for the options"),
)
def test_any_shift(folder, env):
    severities, images, options = [0], [PIXELS], {}
    remedy = yield lambda: apply_shift(images[-1], "masked", severities[-1], **options)
    severities.append(int(re.search(r"\d", remedy)[0]))
    apply_shift(images[-1], "masked", severities[-1], **options)
    images.append(PIXELS / 255)
    yield lambda: apply_shift(images[-1], "masked", severities[-1], **options)
    images.append(np.rint(images[-1] * 255).astype(np.uint8)[:4, :4])
    yield lambda: apply_shift(images[-1], "masked", severities[-1], **options)
    images.append(np.asarray(Image.fromarray(images[-1]).resize((16, 16))))
    apply_shift(images[-1], "masked", severities[-1], **options)
    options["filling"] = "black"
    remedy = yield lambda: apply_shift(images[-1], "masked", severities[-1], **options)
    documented = SHIFTS[re.search(r"SHIFTS\['(\w+)'\]", remedy)[1]].__doc__
    name = re.search(r"^ {4}(fill\w*) : ", documented, re.MULTILINE)[1]
    options[name] = options.pop("filling")


@follows(
    ("data/shifts/made.py", "give both as fractions"),
    ("data/shifts/made.py", "choose one of them"),
)
def test_masks(folder, env):
    options = {"ratio": 25}
    yield lambda: apply_shift(PIXELS, "masked", 1, **options)
    options["ratio"] /= 100
    apply_shift(PIXELS, "masked", 1, **options)
    options["fill"] = "grey"
    yield lambda: apply_shift(PIXELS, "masked", 1, **options)
    options["fill"] = "mean"


@follows(("data/shifts/made.py", "choose one of them"))
def test_a_form_of_low_light(folder, env):
    forms = ["dark"]
    yield lambda: apply_shift(PIXELS, "low_light", 1, form=forms[-1])
    forms.append("gamma")


@follows(
    ("data/shifts/made.py", "choose one of them"),
    ("data/shifts/made.py", "pass both as callables"),
    ("data/shifts/made.py", "resize the style image"),
    ("data/shifts/__init__.py", "name the encoder, for example encoder_name='vgg19-relu4_1'"),
)
def test_a_style(folder, env):
    images = from_arrays("own", PIXELS[None], ["a"], [-1])
    options = {"form": "paint"}
    yield lambda: shifted(images, "stylised", 1, **options).image(0)
    options["form"] = "adain"
    yield lambda: shifted(images, "stylised", 1, **options).image(0)
    options |= {"encoder": squeeze, "decoder": unsqueeze, "encoder_name": "own"}
    shifted(images, "stylised", 1, **options).image(0)
    options["style"] = PIXELS[:9, :9]
    yield lambda: shifted(images, "stylised", 1, **options).image(0)
    options["style"] = np.asarray(Image.fromarray(options["style"]).resize((16, 16)))
    shifted(images, "stylised", 1, **options).image(0)
    del options["encoder_name"]
    remedy = yield lambda: shifted(images, "stylised", 1, **options).image(0)
    options.update([re.search(r"(\w+)='(.*)'", remedy).groups()])


@follows(("data/shifts/made.py", "compute both with the same encoder"))
def test_features_of_two_encoders(folder, env):
    styles = [np.ones((5, 4, 4))]
    yield lambda: adain(squeeze(PIXELS / 255), styles[-1])
    styles.append(squeeze(PIXELS[:4, :4] / 255))


@follows(
    (
        "data/shifts/corruptions.py",
        "name the folder that holds them, or unset BMFL_FROST to have frost drawn",
    ),
    (
        "data/shifts/corruptions.py",
        "name the folder that holds them, or unset BMFL_FROST to have frost drawn",
    ),
)
def test_photographs_of_frost(folder, env):
    (folder / "frost").mkdir()
    Image.fromarray(PIXELS).save(folder / "frost" / "frost1.png")
    env.setenv("BMFL_FROST", str(folder))
    yield lambda: apply_shift(PIXELS, "frost", 1)
    env.setenv("BMFL_FROST", str(folder / "frost"))
    apply_shift(PIXELS, "frost", 1)
    env.setenv("BMFL_FROST", str(folder))
    remedy = yield lambda: apply_shift(PIXELS, "frost", 1)
    env.delenv(re.search(r"unset (\w+)", remedy)[1])
