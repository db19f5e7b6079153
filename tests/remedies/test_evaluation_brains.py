"""The remedies of decoding, similarity and transfer between brains and models, each followed."""

import re
from dataclasses import replace

import hierarchy_example
import numpy as np
import test_alignment_effect as planted
import torch
from following import follows

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.nod_planted import planted_cortex, write_dlabel
from bmfl_lab.data.simulate import simulate_eeg
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.evaluation import similarity, transfer
from bmfl_lab.evaluation.decoding import identify, preferred_stimuli
from bmfl_lab.evaluation.embeddings import fit_decoder, retrieve_names, score_embeddings
from bmfl_lab.evaluation.networks import network_atlas
from bmfl_lab.evaluation.new_subject import new_subject_curve
from bmfl_lab.evaluation.reconstruction import reconstruct, reconstruction_scores
from bmfl_lab.evaluation.roi_tokens import fit_roi_tokens
from bmfl_lab.evaluation.rsa_scores import rsa_scores
from bmfl_lab.evaluation.search import search_displays, visits_to_target
from bmfl_lab.evaluation.synthesis import synthesise_preferred
from bmfl_lab.evaluation.time_decoding import (
    blur_sweep,
    decode_by_sensor,
    decode_over_time,
    eeg_subject,
)

N = 40
RANDOM = np.random.default_rng(0)
EMBEDDINGS = RANDOM.normal(size=(N, 4))
RESPONSES = np.hstack([EMBEDDINGS, RANDOM.normal(size=(N, 4))])
TRAIN, TEST = np.arange(28), np.arange(28, N)
IDS = [f"i{k}" for k in range(N)]
PICTURES = from_arrays(
    "p", RANDOM.integers(0, 256, (N, 8, 8, 3)).astype(np.uint8), IDS, np.full(N, -1)
)
EEG = simulate_eeg({"x": EMBEDDINGS}, {"x": 0.2}, IDS, n_channels=2, step=0.05)


def pixels(images):
    return np.stack([images.image(i) for i in range(len(images))]).reshape(len(images), -1)


@follows(
    ("evaluation/decoding.py", "give predictions for the same images and vertices"),
    ("evaluation/decoding.py", "choose an ROI that this subject has"),
    ("evaluation/decoding.py", "predict the responses to these stimuli"),
)
def test_predictions_of_other_images(folder, env):
    predicted, mask = [RESPONSES[:30]], [np.zeros(8, bool)]
    yield lambda: identify(RESPONSES, predicted[-1], n_boot=10)
    predicted.append(RESPONSES)
    identify(RESPONSES, predicted[-1], n_boot=10)
    yield lambda: preferred_stimuli(predicted[-1], mask[-1], PICTURES)
    mask.append(np.arange(8) < 4)
    preferred_stimuli(predicted[-1], mask[-1], PICTURES)
    predicted.append(RESPONSES[:30])
    yield lambda: preferred_stimuli(predicted[-1], mask[-1], PICTURES)
    predicted.append(RESPONSES)


@follows(
    (
        "evaluation/embeddings.py",
        "give the embedding of each stimulus, in the order of the responses",
    ),
    ("evaluation/embeddings.py", "pass atlas=subject.atlas, or use decoder='ridge'"),
    (
        "evaluation/embeddings.py",
        "measure more, or reduce the embedding to fewer principal components",
    ),
    ("evaluation/embeddings.py", "select the vertices on which the decoder was fitted"),
)
def test_a_decoder_of_other_trials_or_vertices(folder, env):
    embeddings, options = [EMBEDDINGS[:30]], {}

    def call():
        return fit_decoder(RESPONSES, embeddings[-1], device="cpu", **options)

    yield call
    embeddings.append(EMBEDDINGS)
    decoder = call()
    options["decoder"] = "roi_tokens"
    remedy = yield call
    options["decoder"] = re.search(r"decoder='(\w+)'", remedy)[1]
    call()
    embeddings.append(RANDOM.normal(size=(N, N)))
    yield call
    left, sizes, _ = np.linalg.svd(embeddings[-1], full_matrices=False)
    embeddings.append((left * sizes)[:, :4])
    vertices = [np.arange(7)]
    yield lambda: decoder.predict(RESPONSES[:, vertices[-1]])
    vertices.append(np.arange(8))


@follows(
    (
        "evaluation/roi_tokens.py",
        "pass the atlas of the subject, or atlas.subset(mask) for some of its vertices",
    )
)
def test_an_atlas_of_more_vertices(folder, env):
    rois = {"V1": np.arange(10) < 5, "V2": np.arange(10) >= 5}
    atlas, mask = [Atlas(np.repeat([0, 1], 5).astype(np.int8), rois)], np.arange(10) > 1
    x, y = RESPONSES.astype(np.float32), EMBEDDINGS.astype(np.float32)
    yield lambda: fit_roi_tokens(x, y, atlas[-1], epochs=1, device="cpu")
    atlas.append(atlas[-1].subset(mask))


@follows(
    ("evaluation/embeddings.py", "scale with the training images, as Decoder.predict does"),
    ("evaluation/embeddings.py", "choose ways in this range, or test more images"),
)
def test_scores_that_use_statistics_of_the_test_images(folder, env):
    decoder = fit_decoder(RESPONSES[TRAIN], EMBEDDINGS[TRAIN] + 5)
    raw = decoder.predict(RESPONSES[TEST])
    decoded, ways = [(raw - raw.mean(0)) / raw.std(0)], [(2,)]

    def call():
        return score_embeddings(
            decoded[-1], EMBEDDINGS[TEST] + 5, decoder.centre, ways=ways[-1], n_boot=10
        )

    yield call
    decoded.append(decoder.predict(RESPONSES[TEST]))
    call()
    ways.append((2, 50))
    yield call
    ways.append((2, 10))


@follows(
    ("evaluation/embeddings.py", "name more classes to choose from, or lower k"),
    ("evaluation/embeddings.py", "use the text tower of the same model, after its projection"),
    ("evaluation/embeddings.py", "label the test images with the classes that are named"),
)
def test_names_and_texts_of_other_classes(folder, env):
    names, k, text = ["a", "b"], [2], [np.eye(4)[:2]]
    labels = [np.arange(N) % 2]

    def call():
        centre = EMBEDDINGS.mean(0)
        return retrieve_names(EMBEDDINGS, labels[-1], names, text[-1], centre, k=k[-1])

    yield call
    k.append(1)
    call()
    text.append(RANDOM.normal(size=(2, 9)))
    yield call
    text.append(text[-1] @ RANDOM.normal(size=(9, 4)))
    call()
    labels.append(np.arange(N) % 3)
    yield call
    names.append("c")
    text.append(np.eye(4)[:3])


@follows(
    ("evaluation/networks.py", "use a whole-cortex subject, such as one of NOD"),
    (
        "evaluation/networks.py",
        "choose a parcellation of the same mesh and of the part of cortex that was measured",
    ),
)
def test_networks_of_another_cortex(folder, env):
    cortex, path = planted_cortex(), folder / "networks.dlabel.nii"
    n = len(cortex)
    write_dlabel(path, {"Visual": np.zeros(n, bool)})
    atlas = [Atlas(cortex.hemisphere, {})]
    yield lambda: network_atlas(atlas[-1], path)
    atlas.append(Atlas(cortex.hemisphere, {}, cortex.index, "fsLR32k"))
    yield lambda: network_atlas(atlas[-1], path)
    write_dlabel(path, {"Visual": np.arange(n) < 9})


@follows(
    ("evaluation/new_subject.py", "use a study of two or more subjects"),
    ("evaluation/new_subject.py", "ask for fewer, or take a subject with more"),
)
def test_a_new_subject_with_few_trials_and_no_earlier_one(folder, env):
    person, earlier, trials = (RESPONSES, EMBEDDINGS), [], [10]

    def call():
        return new_subject_curve(earlier, person, person, trials, n_shared=2, n_draws=1)

    yield call
    earlier.append(person)
    call()
    trials.append(N + 1)
    yield call
    trials[-1] = N


@follows(
    ("evaluation/reconstruction.py", "pass decoder.centre of the decoder that decoded them"),
    ("evaluation/reconstruction.py", "resize both to one size"),
)
def test_reconstructions_without_their_centre_and_of_another_size(folder, env):
    weights = torch.randn(3 * 64, 4, generator=torch.Generator().manual_seed(0))
    decoder = fit_decoder(RESPONSES, EMBEDDINGS)
    centre, made = [decoder.centre[:3]], []

    def call():
        decoded = decoder.predict(RESPONSES[:2])
        options = {"image_size": 8, "steps": 1}
        return reconstruct(decoded, lambda x: x.flatten(1) @ weights, centre[-1], **options)

    yield call
    centre.append(decoder.centre)
    made.append(call())
    seen = [RANDOM.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)]
    yield lambda: reconstruction_scores(made[-1], seen[-1], n_boot=10)
    seen.append(seen[-1][:, ::2, ::2])


@follows(
    (
        "evaluation/rsa_scores.py",
        "pass rois=['all'] to compare all vertices, or groups that all subjects have",
    ),
    (
        "evaluation/rsa_scores.py",
        "pass stimuli that this subject saw, with the ids of subject.stimuli.ids",
    ),
)
def test_subjects_without_a_common_roi_or_stimulus(folder, env):
    layers, brain = hierarchy_example.chain(12)
    one = hierarchy_example.subject(brain)
    both = [one, replace(hierarchy_example.subject(brain, "t"), atlas=renamed(one.atlas))]
    ids, rois = [[f"x{i}" for i in range(12)]], [None]

    def call():
        return rsa_scores(layers, ids[-1], both, rois=rois[-1], n_permutations=9)

    remedy = yield call
    rois.append([re.search(r"rois=\['(\w+)'\]", remedy)[1]])
    yield call
    ids.append(list(one.stimuli.ids))


def renamed(atlas):
    """Return an atlas with the same vertices under the names of other early visual areas."""
    return replace(atlas, rois=dict(zip(("V4", "LO1", "LO2"), atlas.rois.values())))


@follows(
    (
        "evaluation/search.py",
        "draw both items with the same number of pixels per side, and side=2 or more per row",
    ),
    (
        "evaluation/search.py",
        "draw both items with the same number of pixels per side, and side=2 or more per row",
    ),
    (
        "evaluation/search.py",
        "draw items whose side is a multiple of the backbone's patches, and pass the `side` of the displays",
    ),
)
def test_displays_of_items_of_other_sizes(folder, env):
    items, side, size = [np.zeros((7, 7, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)], [4], [7]

    def call():
        return search_displays(*items, n=3, side=side[-1])

    yield call
    items[0] = np.zeros((8, 8, 3), np.uint8)
    call()
    side.append(1)
    remedy = yield call
    side.append(int(re.search(r"side=(\d)", remedy)[1]))
    displays, places = call()
    assert displays.image(0).shape == (16, 16, 3)

    def visit():
        # a backbone with patches of 2 pixels
        return visits_to_target(np.ones((3, 2 * size[-1] // 2, 2 * size[-1] // 2)), places, 2)

    yield visit
    size.append(8)


@follows(
    ("evaluation/similarity.py", "leave the rows of `test` out of `train`"),
    (
        "evaluation/similarity.py",
        "give each layer one row per stimulus, in the order of the responses",
    ),
    ("evaluation/similarity.py", "pass what rsa_scores returned"),
)
def test_layers_and_tables_that_do_not_fit(folder, env):
    train, layer = [np.arange(N)], [EMBEDDINGS]

    def call():
        return similarity.encoding_predictions(
            {"x": layer[-1]}, RESPONSES, train=train[-1], test=TEST
        )

    yield call
    train.append(np.setdiff1d(train[-1], TEST))
    call()
    layer.append(EMBEDDINGS[:30])
    yield call
    layer.append(EMBEDDINGS)
    call()

    layers, brain = hierarchy_example.chain(12)
    person = hierarchy_example.subject(brain)
    table = rsa_scores(layers, list(person.stimuli.ids), person, n_permutations=9)
    tables = [table[["subject", "layer", "roi", "value"]]]
    yield lambda: similarity.rsa_rows(tables[-1], model="m")
    tables.append(table)


@follows(
    ("evaluation/synthesis.py", "choose an ROI that this subject has, and sizes of 1 or more"),
    ("evaluation/synthesis.py", "choose an ROI that this subject has, and sizes of 1 or more"),
    ("evaluation/synthesis.py", "lower lr"),
)
def test_synthesis_for_no_vertex_without_steps_and_too_fast(folder, env):
    mask, options = [np.zeros(2, bool)], {"steps": 3, "image_size": 4, "n": 1}

    def encoder(images):
        # overflows where images are nearly black or white
        return (50 * (images - 0.5).square().mean((1, 2, 3), keepdim=True).flatten(1)).exp().repeat(
            1, 2
        ) ** 9

    def call():
        return synthesise_preferred(encoder, mask[-1], **options)

    yield call
    mask.append(np.array([True, False]))
    call()
    options["steps"] = 0
    remedy = yield call
    options["steps"] = int(re.search(r"(\d) or more", remedy)[1])
    call()
    options.update(steps=3, lr=100.0)
    yield call
    options["lr"] = 0.01


@follows(
    ("evaluation/time_decoding.py", "use for example width=0.05, step=0.02"),
    ("evaluation/time_decoding.py", "choose one in which there are samples"),
    (
        "evaluation/time_decoding.py",
        "use eeg_stimuli, or order the images by the ids of the recording",
    ),
    ("evaluation/time_decoding.py", "use for example (0, 2, 4) and spread=0.5"),
)
def test_windows_images_and_blurs_of_a_recording(folder, env):
    options, window, images = {"width": 9.0}, [(3.0, 4.0)], [PICTURES.subset(np.arange(N)[::-1])]
    remedy = yield lambda: decode_over_time(EEG, EMBEDDINGS, TRAIN, TEST, n_boot=5, **options)
    options |= {k: float(v) for k, v in re.findall(r"(\w+)=([\d.]+\d)", remedy)}
    yield lambda: decode_by_sensor(EEG, EMBEDDINGS, TRAIN, TEST, window=window[-1], n_boot=5)
    window.append((0.1, 0.3))
    splits = {"train": TRAIN, "test": TEST}
    yield lambda: eeg_subject("s", EEG, images[-1], splits)
    images.append(images[-1].subset(images[-1].index_of(EEG.ids)))
    eeg_subject("s", EEG, images[-1], splits)
    sigmas, spread = [(1,)], [2.0]
    remedy = yield lambda: blur_sweep(
        PICTURES, RESPONSES, pixels, TRAIN, TEST, sigmas[-1], spread=spread[-1], n_boot=5
    )
    sigmas.append(tuple(map(int, re.search(r"\((.*)\)", remedy)[1].split(","))))
    spread.append(float(re.search(r"spread=([\d.]+\d)", remedy)[1]))


@follows(
    ("evaluation/transfer.py", "give a stimulus the same split in every subject"),
    (
        "evaluation/transfer.py",
        "pass models={'': original, 'subj01': aligned} and at least one subject",
    ),
)
def test_subjects_with_other_splits_and_models_without_the_original(folder, env):
    one, two = planted.subject(), planted.subject("t", 1)
    people = [one, replace(two, splits={"train": np.arange(20, 60), "test": np.arange(20)})]
    yield lambda: transfer.shared_test(people)
    people[1] = two
    transfer.shared_test(people)
    models = {"s": planted.Model(3.0)}
    remedy = yield lambda: transfer.across_subjects(models, people[:1], n_boot=5)
    models[re.search(r"\{'(.*?)': original", remedy)[1]] = planted.Model(0.5)


@follows(
    ("evaluation/transfer.py", "use folds(), and a window of this recording"),
    ("evaluation/transfer.py", "use folds(), and a window of this recording"),
    ("evaluation/transfer.py", "add it to the mapping `selection`"),
)
def test_models_on_eeg(folder, env):
    who = planted.subject()
    eeg = simulate_eeg({"x": planted.TRUTH}, {"x": 0.2}, who.stimuli.ids, n_channels=2, step=0.1)
    models = {"original": planted.Model(0.5), "aligned": planted.Model(3.0)}
    fold = (np.arange(40), np.arange(40, 60))
    splits, window, selection = [[fold, fold]], [(0.0, 1.0)], {"original": "none"}

    def call():
        return transfer.on_eeg(
            models, eeg, who.stimuli, splits=splits[-1], window=window[-1], n_boot=5
        )

    yield call
    splits.append(transfer.folds(60))
    found = call()
    window.append((2, 3))
    yield call
    window.append((0.0, 0.4))
    call()
    remedy = yield lambda: transfer.eeg_rows(found, subject="s", selection=selection)
    assert re.search(r"`(\w+)`", remedy)[1] == "selection"
    selection["aligned"] = "none"
