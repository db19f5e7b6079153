"""The remedies of tables of classes and models, of clips and of texts, each followed."""

import re

import evaluation_example as example
import numpy as np
import pandas as pd
from following import follows
from PIL import Image

from bmfl_lab.data.ood_sets import read_far
from bmfl_lab.evaluation.axes import read_axes
from bmfl_lab.evaluation.clips import clip_features, imported_features, motion_energy, read_clips
from bmfl_lab.evaluation.convergence import convergence_trends, read_models_table
from bmfl_lab.evaluation.open_questions import (
    gain_against_accuracy,
    read_out_far,
    read_texts,
    zero_shot,
)
from bmfl_lab.evaluation.preferences import category_purity

RANDOM = np.random.default_rng(0)


def save(path, value, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(path)


@follows(
    ("evaluation/axes.py", "name the classes in a column 'class'"),
    ("evaluation/axes.py", "give each class of the study one row"),
    ("evaluation/axes.py", "write numbers"),
    ("evaluation/axes.py", "fill in the cells, or take the axis out"),
    ("evaluation/axes.py", "fill in the cells, or take the axis out"),
)
def test_a_table_of_axes(folder, env):
    table = [pd.DataFrame({"name": ["ant", "bus"], "size": ["small", "10"]})]

    def call():
        return read_axes(table[-1], ["ant", "bus", "cat"])

    remedy = yield call
    table.append(table[-1].rename(columns={"name": re.search(r"column '(\w+)'", remedy)[1]}))
    yield call
    table.append(pd.concat([table[-1], pd.DataFrame({"class": ["cat"], "size": ["5"]})]))
    yield call
    table.append(table[-1].replace("small", "1"))
    call()
    table.append(table[-1].assign(animacy=["1", "", "1"]))
    yield call
    table.append(table[-1].replace("", "0"))
    call()
    table.append(table[-1].assign(alive=1))
    yield call
    table.append(table[-1].drop(columns="alive"))


@follows(
    ("evaluation/clips.py", "read each clip as an array of RGB frames"),
    ("evaluation/clips.py", "leave that clip out, or read more of its frames"),
    ("evaluation/clips.py", "cut them to the length of the shortest"),
    ("evaluation/clips.py", "resize the frames of all clips to one size, {} pixels or more"),
    ("evaluation/clips.py", "resize the frames of all clips to one size, {} pixels or more"),
)
def test_clips_of_other_shapes(folder, env):
    clips = [RANDOM.integers(0, 256, (n, s, s)).astype(np.uint8) for n, s in ((5, 8), (2, 8))]

    def call():
        return motion_energy(clips)

    yield call
    clips[:] = [np.repeat(clip[..., None], 3, 3) for clip in clips]
    yield call
    short = clips.pop()
    call()
    clips.append(np.concatenate([short, short]))
    yield call
    clips[0] = clips[0][:4]
    call()
    clips[0] = np.repeat(np.repeat(clips[0], 2, 1), 2, 2)
    yield call
    clips[1] = np.repeat(np.repeat(clips[1], 2, 1), 2, 2)
    call()
    clips[:] = [clip[:, ::4, ::4] for clip in clips]
    remedy = yield call
    times = int(re.search(r"(\d+) pixels", remedy)[1]) // clips[0].shape[1]
    clips[:] = [np.repeat(np.repeat(clip, times, 1), times, 2) for clip in clips]


@follows(
    (
        "evaluation/clips.py",
        "cut them to the length of the shortest, or pool over frames with pool='mean'",
    ),
    (
        "evaluation/clips.py",
        "cut them to the length of the shortest, or pool over frames with pool='mean'",
    ),
    (
        "evaluation/clips.py",
        "name each row by its clip, or by its clip and frame, such as 'waves-frame12'",
    ),
)
def test_features_of_clips_of_other_lengths(folder, env):
    clips, pool = [np.zeros((n, 28, 28, 3), np.uint8) for n in (2, 1)], ["frames"]
    yield lambda: clip_features(clips, example.backbone(), pool=pool[-1])
    clips[0] = clips[0][:1]
    clip_features(clips, example.backbone(), pool=pool[-1])

    def write(*names):
        np.savez(folder / "x.npz", features=np.ones((len(names), 2), np.float32), ids=names)

    write("waves-frame11", "waves-frame12", "sea-frame1")
    remedy = yield lambda: imported_features(folder / "x.npz", ["waves", "sea"], pool=pool[-1])
    pool.append(re.search(r"pool='(\w+)'", remedy)[1])
    imported_features(folder / "x.npz", ["waves", "sea"], pool=pool[-1])
    write("waves_11", "sea")
    remedy = yield lambda: imported_features(folder / "x.npz", ["waves", "sea"])
    write(re.search(r"'(.*)'", remedy)[1], "sea")


@follows(
    ("evaluation/clips.py", "save the frames of each clip as images in a folder of its own"),
    (
        "evaluation/clips.py",
        "move its folder out of {}, or save its frames again, all of one size",
    ),
    (
        "evaluation/clips.py",
        "move its folder out of {}, or save its frames again, all of one size",
    ),
)
def test_frames_of_clips(folder, env):
    clips = folder / "clips"
    clips.mkdir()
    yield lambda: read_clips(clips)
    save(clips / "sea" / "1.png", 0)
    read_clips(clips)
    save(clips / "sea" / "2.png", 0, size=9)
    yield lambda: read_clips(clips)
    save(clips / "sea" / "2.png", 0)
    read_clips(clips)
    (clips / "empty").mkdir()
    remedy = yield lambda: read_clips(clips)
    (clips / "empty").rename(folder / "empty")
    assert re.search(r"out of '(\w+)'", remedy)[1] == clips.name


@follows(
    ("evaluation/convergence.py", "write a CSV file with a column 'model' and one per attribute"),
    (
        "evaluation/convergence.py",
        "give each a label of its own, and its name under 'backbone'",
    ),
    ("evaluation/convergence.py", "leave the cells of unknown attributes empty"),
    ("evaluation/convergence.py", "leave the cells of unknown attributes empty"),
)
def test_a_table_of_models(folder, env):
    path = folder / "models.csv"

    def write(*lines):
        path.write_text("\n".join(lines) + "\n")

    write("name,images", "dinov2_vits14,142")
    remedy = yield lambda: read_models_table(path)
    column = re.search(r"column '(\w+)'", remedy)[1]
    write(f"{column},images", "dinov2_vits14,142")
    read_models_table(path)
    write("model,images", "dinov2_vits14,142", "dinov2_vits14,1.2")
    remedy = yield lambda: read_models_table(path)
    column = re.search(r"under '(\w+)'", remedy)[1]
    write(f"model,images,{column}", "long,142,dinov2_vits14", "short,1.2,dinov2_vits14")
    read_models_table(path)
    write("model,images", "dinov2_vits14,unknown")
    yield lambda: read_models_table(path)
    write("model,images", "dinov2_vits14,")
    read_models_table(path)
    write("model,image_size", "dinov2_vits14,large")
    yield lambda: read_models_table(path)
    write("model,image_size", "dinov2_vits14,")


@follows(
    ("evaluation/convergence.py", "add a row for each model"),
    ("evaluation/convergence.py", "compare four or more models whose attributes are known"),
)
def test_trends_over_few_models(folder, env):
    names = list("abc")

    def scores():
        return pd.DataFrame({"encoding": np.arange(len(names)) / 10}, index=names)

    size = [pd.DataFrame({"size": [1.0, 2, 3]}, index=["a", "b", "d"])]
    yield lambda: convergence_trends(scores(), size[-1], n_permutations=20)
    size.append(pd.concat([size[-1], pd.DataFrame({"size": [4.0]}, index=["c"])]))
    yield lambda: convergence_trends(scores(), size[-1], n_permutations=20)
    names.append("d")


@follows(
    (
        "evaluation/open_questions.py",
        "use the text tower of the same model, and its projection of images if it has one",
    ),
    (
        "evaluation/open_questions.py",
        "use the text tower of the same model, and its projection of images if it has one",
    ),
    ("evaluation/open_questions.py", "save the text embeddings under this name"),
    (
        "evaluation/open_questions.py",
        "vary the encoder in four or more ways, and train one fusion with each",
    ),
)
def test_texts_and_encoders_of_open_questions(folder, env):
    backbone, width = example.backbone(), example.backbone().width
    words, projection = [np.ones((2, 7))], [None]

    def call():
        return zero_shot(backbone, ["dark", "bright"], words[-1], projection=projection[-1])

    yield call
    words.append(np.ones((2, width)))
    call()
    words.append(np.ones((2, 7)))
    yield call
    projection.append(np.ones((width, 7)))
    call()

    np.savez(folder / "texts.npz", text=words[-1])
    yield lambda: read_texts(folder / "texts.npz")
    np.savez(folder / "texts.npz", words=words[-1])
    read_texts(folder / "texts.npz")

    ways = [("noise", str(k), k / 10) for k in range(3)]
    right = [RANDOM.random((2, 9)) < 0.5 for _ in ways]
    yield lambda: gain_against_accuracy(ways, right, right[0], n_permutations=20)
    ways.append(("block", "0", 0.4))
    right.append(RANDOM.random((2, 9)) < 0.5)


@follows(("evaluation/open_questions.py", "give a folder with one folder of images per class"))
def test_a_far_domain_of_one_class(folder, env):
    for k in range(8):
        save(folder / "far" / "cats" / f"{k}.png", k)
    far = [read_far(folder / "far")["far"]]

    def call():
        features = np.array([far[-1].image(i).mean((0, 1)) for i in range(len(far[-1]))])
        return read_out_far(features, far[-1].labels)

    yield call
    for k in range(8):
        save(folder / "far" / "dogs" / f"{k}.png", 200 + k)
    far.append(read_far(folder / "far")["far"])


@follows(("evaluation/preferences.py", "rank a labelled image set"))
def test_images_without_labels(folder, env):
    pool = [np.full(20, -1)]
    yield lambda: category_purity(pool[-1][:5], pool[-1], ("a", "b"), n_draws=20)
    pool.append(np.arange(20) % 2)
