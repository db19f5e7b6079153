"""The remedies of `bmfl_lab.models`, each followed."""

import re
from types import SimpleNamespace

import numpy as np
import torch
from following import follows
from torch import nn

from bmfl_lab.backbones import load_backbone
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.models.alignment import AlignmentHead
from bmfl_lab.models.attention import MultiHeadAttention, sincos_positions
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.models.brain_transformer import BrainTransformer, ParcelTokeniser, PatchTokeniser
from bmfl_lab.models.build import FusionConfig, build_fusion
from bmfl_lab.models.encoders import (
    GroupedReadout,
    ROIQueryEncoder,
    fit_retinotopic,
    query_masks,
    sine_positions,
)
from bmfl_lab.models.fusion import FusionModel
from bmfl_lab.models.lesion import LESION_KINDS, Lesion, apply_lesion
from bmfl_lab.models.ridge import fit_ridge, fold_rows

DRAW = np.random.default_rng(0)
X, WEIGHTS = DRAW.normal(size=(60, 4)), DRAW.normal(size=(4, 6))
Y = X @ WEIGHTS + DRAW.normal(size=(60, 6))
ATLAS = Atlas(np.repeat([0, 1], 10), {"V1": np.arange(20) % 10 < 4, "V2": np.arange(20) % 10 > 6})
RESPONSE = torch.randn(3, 20)
MASKS = np.eye(3, dtype=bool)


def number(pattern, remedy):
    """Return the number that a remedy gives."""
    return int(re.search(pattern, remedy)[1])


@follows(
    ("models/alignment.py", "name the blocks to read"),
    ("models/alignment.py", "give 1 or more for each of these"),
)
def test_a_head_that_reads_nothing(folder, env):
    sizes, width = {}, [0]
    yield lambda: AlignmentHead(sizes)
    sizes["IT"] = (2, 4, 4)
    remedy = yield lambda: AlignmentHead(sizes, width=width[-1])
    width.append(number(r"give (\d)", remedy))


@follows(
    ("models/alignment.py", "pass the outputs of all blocks on which the head was trained"),
    (
        "models/alignment.py",
        "use the image size of the training, or train with AlignConfig.pool",
    ),
)
def test_blocks_that_a_head_does_not_read(folder, env):
    heads = [AlignmentHead({"V4": (2, 4, 4), "IT": (2, 2, 2)}, n_responses=5)]
    blocks = {"V4": torch.randn(3, 2, 4, 4)}
    yield lambda: heads[-1](blocks)
    blocks["IT"] = torch.randn(3, 2, 2, 2)
    heads[-1](blocks)
    blocks["IT"] = torch.randn(3, 2, 7, 7)
    yield lambda: heads[-1](blocks)
    heads[-1]({**blocks, "IT": torch.randn(3, 2, 2, 2)})
    heads.append(AlignmentHead(heads[-1].sizes, n_responses=5, pool=2))


@follows(
    ("models/attention.py", "set n_heads={}, or choose a multiple of n_heads as the width"),
    ("models/attention.py", "set n_heads={}, or choose a multiple of n_heads as the width"),
)
def test_heads_that_do_not_divide_the_width(folder, env):
    n_heads = [4]
    remedy = yield lambda: MultiHeadAttention(width=10, n_heads=n_heads[-1])
    MultiHeadAttention(width=3 * n_heads[-1], n_heads=n_heads[-1])
    n_heads.append(number(r"n_heads=(\d+)", remedy))
    MultiHeadAttention(width=10, n_heads=n_heads[-1])
    none = [0]
    remedy = yield lambda: MultiHeadAttention(width=10, n_heads=none[-1])
    none.append(number(r"n_heads=(\d+)", remedy))


@follows(
    ("models/attention.py", "use an even width, for example {}"),
    ("models/encoders.py", "use a width of {}"),
)
def test_a_width_without_positions(folder, env):
    width = [5]
    remedy = yield lambda: sincos_positions(3, width[-1])
    width.append(number(r"example (\d+)", remedy))
    sincos_positions(3, width[-1])
    remedy = yield lambda: sine_positions((2, 2), width[-1])
    width.append(number(r"of (\d+)", remedy))


def brain(**changes):
    tokeniser = PatchTokeniser(n_vertices=20, width=8, patch=5)
    return BrainTransformer(
        **{"tokeniser": tokeniser, "width": 8, "depth": 1, "n_heads": 2, **changes}
    )


@follows(
    (
        "models/brain_transformer.py",
        "use 'sincos' if the order of the tokens has a meaning, and else 'learned'",
    ),
)
def test_unknown_positions(folder, env):
    positions = ["2d"]
    remedy = yield lambda: brain(positions=positions[-1])
    for name in re.findall("'(.*?)'", remedy):
        brain(positions=name)
        positions.append(name)


@follows(
    ("models/brain_transformer.py", "choose regions that this subject has"),
    (
        "models/brain_transformer.py",
        "give a patch of 1 or more vertices, and the number of vertices of the responses",
    ),
)
def test_tokens_of_no_vertex(folder, env):
    parcels = {"left:V3": np.array([], int)}
    yield lambda: ParcelTokeniser(parcels=parcels, n_vertices=20, width=8)
    del parcels["left:V3"]
    parcels |= ATLAS.parcels()
    ParcelTokeniser(parcels=parcels, n_vertices=20, width=8)
    sizes = {"patch": 0, "n_vertices": 0}
    remedy = yield lambda: PatchTokeniser(width=8, **sizes)
    sizes |= {"patch": number(r"patch of (\d)", remedy), "n_vertices": RESPONSE.shape[1]}


@follows(("models/build.py", "set for example {}"))
def test_a_configuration_outside_its_limits(folder, env):
    wrong = {"alpha": -1, "regions": (), "kind": "cls", "dropout": 1, "label_smoothing": 1}
    remedy = yield lambda: FusionConfig(**wrong)
    wrong |= eval(f"dict({remedy.removeprefix('set for example ')})")


@follows(
    (
        "models/build.py",
        "pass encoder=... or atlas=..., or use regions=('all',) and tokeniser='patch'",
    ),
)
def test_parcels_without_an_atlas(folder, env):
    given, choices = {}, {"regions": ("V1",), "depth": 1}
    remedy = yield lambda: build_fusion(
        FusionConfig(**choices), visual_width=4, n_classes=2, n_vertices=20, **given
    )
    build_fusion(FusionConfig(**choices), visual_width=4, n_classes=2, atlas=ATLAS)
    choices["tokeniser"] = re.search("tokeniser='(.*)'", remedy)[1]
    choices["regions"] = (re.search(r"regions=\('(.*)',\)", remedy)[1],)


@follows(
    (
        "models/fusion.py",
        "raise FusionConfig.width, so that one hidden unit is a smaller share of all parameters",
    ),
)
def test_a_backbone_that_cannot_match_a_small_fusion(folder, env):
    sizes = {"brain_width": 4, "depth": 1, "n_heads": 1, "width": 4}
    remedy = yield lambda: build_fusion(
        FusionConfig(head="backbone", tokeniser="patch", **sizes),
        visual_width=384,
        n_classes=2,
        n_vertices=20,
    )
    sizes[re.search(r"raise FusionConfig\.(\w+)", remedy)[1]] = FusionConfig.width


@follows(
    ("models/fusion.py", "choose one of them, and pass brain=... unless it is 'backbone'"),
    ("models/fusion.py", "choose one of them, and pass brain=... unless it is 'backbone'"),
)
def test_a_head_without_its_brain(folder, env):
    given = {"head": "concat"}
    yield lambda: FusionModel(visual_width=4, n_classes=2, brain_width=8, **given)
    given["brain"] = brain()
    FusionModel(visual_width=4, n_classes=2, brain_width=8, **given)
    heads = ["sum"]
    remedy = yield lambda: FusionModel(visual_width=4, n_classes=2, head=heads[-1])
    heads.append(re.search("unless it is '(.*)'", remedy)[1])


def token_model(head="fusion", **given):
    fusion = FusionModel(
        head=head,
        visual_width=BACKBONE.width,
        n_classes=2,
        brain=brain(),
        brain_width=8,
        width=8,
        n_heads=2,
    )
    return BMFL(backbone=BACKBONE, fusion=fusion, **given).eval()


BACKBONE = load_backbone("vit_tiny14", "random:0", image_size=28, device="cpu")
IMAGES = torch.zeros(3, 3, 28, 28)
NAMES = ("a", "b", "c")


@follows(("models/bmfl.py", "lesion a fusion model"))
def test_a_lesion_of_a_model_without_a_brain(folder, env):
    models = [token_model("backbone")]
    batch = {**models[0].tokens(IMAGES), "response": RESPONSE}
    lesion = Lesion(ATLAS.select("V1"), "zero")
    yield lambda: models[-1].classify(batch, lesion=lesion)
    models.append(token_model("fusion"))


@follows(
    (
        "models/bmfl.py",
        "pass ids=..., one id per image, or use a model whose responses an encoder predicts",
    ),
    ("models/bmfl.py", "let the response source return one row per stimulus"),
    ("models/bmfl.py", "let the response source return finite values for this image"),
)
def test_responses_of_a_faulty_control(folder, env):
    stored = dict.fromkeys(NAMES[:2], np.ones(20, np.float32))
    model = token_model(source=lambda batch, ids: np.stack([stored[i] for i in ids if i in stored]))
    given = {}
    remedy = yield lambda: model(IMAGES[:2], **given)
    token_model(encoder=nn.Sequential(nn.Flatten(), nn.Linear(4 * BACKBONE.width, 20)))(IMAGES)
    given[re.search(r"pass (\w+)=", remedy)[1]] = NAMES[:2]
    model(IMAGES[:2], **given)
    yield lambda: model(IMAGES, ids=NAMES)
    stored["c"] = np.full(20, np.nan, np.float32)
    yield lambda: model(IMAGES, ids=NAMES)
    stored["c"] = np.ones(20, np.float32)


@follows(
    (
        "models/bmfl.py",
        "use stored tokens: `logits` of a stimulus set, batches='store' in training",
    ),
)
def test_an_encoder_of_another_backbone(folder, env):
    class Source(SimpleNamespace):
        def __call__(self, batch, ids):
            return np.ones((len(ids), 20), np.float32)

    model = token_model(source=Source(encoder="of another backbone"))
    batch = model.tokens(IMAGES)
    yield lambda: model.classify({**batch, "response": model.respond(batch, NAMES)})
    batch["response"] = RESPONSE


@follows(
    (
        "models/lesion.py",
        "choose one of these kinds, and strength=1 for a full lesion",
    ),
    ("models/lesion.py", "make it with the atlas of the brain encoder"),
    ("models/lesion.py", "pass mean_V=..., or mean=... and scale=... to BMFL"),
    ("models/lesion.py", "pass donors_NV=..., or donors=... to BMFL"),
)
def test_lesions_that_lack_something(folder, env):
    choices = {"kind": "cut", "strength": 100}
    mask = [np.ones(5, bool)]
    remedy = yield lambda: Lesion(mask[-1], **choices)
    choices = {"kind": LESION_KINDS[0], "strength": number(r"strength=(\d)", remedy)}
    given = {"mean_V": torch.zeros(20)}
    yield lambda: apply_lesion(RESPONSE, Lesion(mask[-1], **choices), **given)
    mask.append(ATLAS.select("V1"))
    apply_lesion(RESPONSE, Lesion(mask[-1], **choices), **given)
    del given["mean_V"]
    remedy = yield lambda: apply_lesion(RESPONSE, Lesion(mask[-1], **choices), **given)
    given[re.search(r"pass (\w+)=", remedy)[1]] = torch.zeros(20)
    apply_lesion(RESPONSE, Lesion(mask[-1], **choices), **given)
    statistics = dict.fromkeys(re.findall(r"(\w+)=\.\.\.", remedy)[1:], np.ones(20, np.float32))
    token_model(**statistics).select(RESPONSE, Lesion(mask[-1], **choices))
    given, lesion = {}, Lesion(mask[-1], "resample")
    remedy = yield lambda: apply_lesion(RESPONSE, lesion, **given)
    name, of_model = re.findall(r"(\w+)=\.\.\.", remedy)
    token_model(**{of_model: np.ones((4, 20), np.float32)}).select(RESPONSE, lesion)
    given[name] = torch.ones(4, 20)


@follows(
    ("models/encoders.py", "set n_heads to 1 or more in the EncoderConfig"),
    ("models/encoders.py", "set width={} in the EncoderConfig"),
    ("models/encoders.py", "use query_masks, which adds a query for the rest"),
    (
        "models/encoders.py",
        "use the image size and kind of tokens that the encoder was trained on",
    ),
)
def test_queries_that_do_not_fit(folder, env):
    width, n_heads = [16], [0]

    def make():
        return ROIQueryEncoder(
            masks=MASKS, token_width=6, grid=(2, 2), width=width[-1], n_heads=n_heads[-1]
        )

    remedy = yield make
    n_heads.append(number(r"to (\d)", remedy))
    make()
    n_heads.append(6)
    remedy = yield make
    width.append(number(r"width=(\d+)", remedy))
    encoder = make()
    masks = [MASKS[:2]]
    yield lambda: GroupedReadout(masks=masks[-1], width=4)
    masks.append(query_masks(np.zeros(3, int), {"V1": MASKS[0], "V2": MASKS[1]})[1])
    GroupedReadout(masks=masks[-1], width=4)
    tokens = [torch.zeros(2, 9, 6)]
    yield lambda: encoder(tokens[-1])
    tokens.append(torch.zeros(2, 4, 6))


@follows(("models/encoders.py", "give the grid of these tokens"))
def test_another_grid_of_patches(folder, env):
    tokens, grid = DRAW.normal(size=(20, 6, 3)), [(3, 3)]
    yield lambda: fit_retinotopic(
        tokens, Y[:20], grid=grid[-1], per_side=1, sizes=(0.2,), n_folds=2
    )
    grid.append((2, 3))


@follows(
    ("models/ridge.py", "set n_folds={}"),
    ("models/ridge.py", "give two or more stimuli"),
    ("models/ridge.py", "give one session label per stimulus, or disjoint row lists"),
)
def test_folds_that_do_not_divide_the_stimuli(folder, env):
    n_folds = [1]
    remedy = yield lambda: fold_rows(4, n_folds[-1])
    n_folds.append(number(r"n_folds=(\d+)", remedy))
    fold_rows(4, n_folds[-1])
    n = [1]
    yield lambda: fold_rows(n[-1], 2)
    n.append(2)
    folds = [[np.array([0, 1, 2]), np.array([2, 3])]]
    yield lambda: fold_rows(4, folds=folds[-1])
    fold_rows(4, folds=["monday", "monday", "tuesday", "tuesday"])
    folds.append([np.array([0, 1]), np.array([2, 3])])


@follows(
    ("models/ridge.py", "pair them by stimulus id"),
    ("models/ridge.py", "drop those columns or mask them first"),
    ("models/ridge.py", "use np.logspace(0, 8, 17)"),
    ("models/ridge.py", "use the features on which the ridge was fitted"),
)
def test_data_that_a_ridge_cannot_read(folder, env):
    ids, measured = [f"s{i}" for i in range(60)], [f"s{i}" for i in range(40)]
    rows = [np.arange(60)]
    y = Y[:40].copy()
    alphas = [(0.1, 10.0)]
    kept = [np.arange(6)]

    def fit():
        return fit_ridge(X[rows[-1]], y[:, kept[-1]], alphas[-1])

    yield fit
    rows.append(np.array([ids.index(name) for name in measured]))
    y[3, 2] = np.nan
    yield fit
    kept.append(np.flatnonzero(np.isfinite(y).all(0)))
    alphas.append((0.0, 10.0))
    remedy = yield fit
    alphas.append(eval(re.search(r"np\.logspace\(.*\)", remedy)[0]))
    ridge, features = fit(), [X[:, :3]]
    yield lambda: ridge.predict(features[-1])
    features.append(X[40:])


@follows(("models/ridge.py", "widen `alphas`"))
def test_penalties_at_the_end_of_the_grid(folder, env):
    noisy = X @ WEIGHTS + 3 * np.random.default_rng(1).normal(size=(60, 6))
    alphas = [np.logspace(-3, -1, 3)]
    yield lambda: fit_ridge(X, noisy, alphas[-1])
    alphas.append(np.logspace(-3, 6, 28))
