"""The remedies of alignment, sources, readouts, probes and the command line, each followed."""

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import trained
from following import follows

from bmfl_lab.data.shifts import shifted
from bmfl_lab.models.bmfl import TokenBatch
from bmfl_lab.runs.notebook import Notebook
from bmfl_lab.runs.spec import Run
from bmfl_lab.training import __main__ as command
from bmfl_lab.training import (
    aligned,
    encoder_variants,
    train_models,
    train_probe,
    with_classes,
)
from bmfl_lab.training.external import ExternalEncoder, lookup_source
from bmfl_lab.training.loop import LoopConfig
from bmfl_lab.training.readout import fit_readout
from bmfl_lab.training.sources import EncoderSource, mixed_source, noise_source, other_image_source

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
DRAW = np.random.default_rng(0)
ONE_STEP = LoopConfig(epochs=1, batch_size=24)
ALIGN = aligned.tiny(image_size=28, n_components=4, pretrain=ONE_STEP, loop=ONE_STEP)
NO_TOKENS = TokenBatch(np.zeros((1, 4)), np.zeros((1, 4, 4)))


def number(pattern, remedy):
    """Return the number that a remedy gives."""
    return int(re.search(pattern, remedy)[1])


@functools.cache
def original():
    """Return a small network that was trained for one step on images."""
    return aligned.prepare_original(ALIGN, trained.study(), device="cpu")


def align(person=None, network=None, **changes):
    """Align the network for one step."""
    return aligned.train_aligned(
        trained.configured(ALIGN, **changes),
        trained.study(),
        subject=person,
        original=original() if network is None else network,
        device="cpu",
    )


@follows(
    ("training/aligned.py", "drop NaN vertices first"),
    ("training/aligned.py", "set n_components={}, or use more training images"),
    ("training/aligned.py", "use responses that differ between images"),
    ("training/aligned.py", "use the vertices on which the features were fitted"),
)
def test_responses_without_features(folder, env):
    y = [DRAW.normal(size=(10, 6))]
    y[0][3, 2] = np.nan
    n = [3]

    def fit():
        return aligned.fit_response_features(y[-1], n[-1])

    yield fit
    y.append(y[0][:, np.isfinite(y[0]).all(0)])
    fit()
    n.append(9)
    remedy = yield fit
    n.append(number(r"n_components=(\d+)", remedy))
    features = fit()
    y.append(np.ones((10, 5)))
    yield fit
    y.append(y[1])
    new = [DRAW.normal(size=(2, 6))]
    yield lambda: features.transform(new[-1])
    new.append(new[-1][:, np.isfinite(y[0]).all(0)])


@follows(("training/aligned.py", "set batch_size=16 in the loop, as published"))
def test_a_batch_without_a_contrast(folder, env):
    size = [1]
    remedy = yield lambda: align(loop=trained.configured(ONE_STEP, batch_size=size[-1]))
    size.append(number(r"batch_size=(\d+)", remedy))


@follows(
    (
        "training/aligned.py",
        "move some of the training stimuli to a split 'val', or set selection='last'",
    ),
    (
        "training/aligned.py",
        "move some of the training stimuli to a split 'val', or set selection='last'",
    ),
)
def test_alignment_without_validation_stimuli(folder, env):
    person = trained.study().subject()
    splits = {k: v for k, v in person.splits.items() if k != "val"}
    people = [dataclasses.replace(person, splits={**splits, "val": person.rows("val")[:0]})]
    given = {}
    remedy = yield lambda: align(people[-1], **given)
    train = person.rows("train")
    people.append(dataclasses.replace(person, splits={"train": train[4:], "val": train[:4]}))
    align(people[-1])
    people.append(people[0])
    remedy = yield lambda: align(people[-1], **given)
    given["selection"] = re.search("selection='(.*)'", remedy)[1]


@follows(("training/aligned.py", "use targets='original', which needs no labels"))
def test_alignment_to_labels_that_are_not_there(folder, env):
    given = {"targets": "labels"}
    remedy = yield lambda: align(**given)
    given["targets"] = re.search("targets='(.*)'", remedy)[1]


@follows(("training/aligned.py", "use the model that train_aligned returns"))
def test_responses_of_the_original_network(folder, env):
    models = [original()]
    yield lambda: models[-1].responses(trained.study().set("test"))
    models.append(align())


@follows(
    ("training/external.py", "give one row per stimulus id"),
    ("training/external.py", "add its response to those that are looked up"),
    (
        "training/external.py",
        "leave out artificial shifts: there are no predictions for shifted images",
    ),
)
def test_predictions_that_are_not_there(folder, env):
    stimuli = trained.study().set("test")
    ids, responses = list(map(str, stimuli.ids[:5])), [DRAW.normal(size=(4, 6))]
    yield lambda: lookup_source(ids, responses[-1])
    responses.append(DRAW.normal(size=(5, 6)))
    yield lambda: lookup_source(ids, responses[-1])(NO_TOKENS, stimuli.ids)
    ids += list(map(str, stimuli.ids[5:]))
    responses.append(DRAW.normal(size=(len(ids), 6)))
    lookup_source(ids, responses[-1])(NO_TOKENS, stimuli.ids)
    person = trained.study().subject()
    outside = ExternalEncoder(
        dataclasses.replace(person, kind="predicted"), trained.study().backbone
    )
    shown = [shifted(person.stimuli.subset([0, 1]), "contrast", 3)]
    yield lambda: outside.predict_stimuli(shown[-1])
    shown.append(person.stimuli.subset([0, 1]))


@follows(
    (
        "training/probe.py",
        "pass at least one of each, and no more blocks than the backbone has",
    ),
    ("training/probe.py", "use rates of the published grid, {} to {}"),
)
def test_a_grid_without_a_probe(folder, env):
    grid = {"n_blocks": (1, 40), "mean_patch": (), "learning_rates": ()}

    def probe():
        return train_probe(
            trained.study(),
            epochs=2,
            batch_size=4,
            store=trained.context().store,
            device="cpu",
            **grid,
        )

    yield probe
    grid |= {"n_blocks": (1,), "mean_patch": (False,), "learning_rates": (1e42,)}
    remedy = yield probe
    grid["learning_rates"] = tuple(map(float, re.search(r"grid, (\S+) to (\S+)", remedy).groups()))


def relabelled(labels):
    """Return the study with other labels of its training images."""
    study = trained.study()
    train = dataclasses.replace(study.set("train"), labels=np.asarray(labels))
    return dataclasses.replace(study, sets={**study.sets, "train": train})


@follows(
    ("training/readout.py", "label them, or leave them out of the study"),
    ("training/readout.py", "use how='ridge'"),
)
def test_a_readout_of_other_classes(folder, env):
    labels = np.array(trained.study().set("train").labels)
    labels[2] = -1
    studies = [relabelled(labels)]
    yield lambda: fit_readout(original(), studies[-1])
    studies.append(trained.study())
    fit_readout(original(), studies[-1])
    published = trained.configured(original(), n_classes=1000)
    how = ["own"]
    remedy = yield lambda: with_classes(published, trained.study(), how[-1])
    how.append(re.search("how='(.*)'", remedy)[1])


@follows(
    ("training/sources.py", "predict them for the training images"),
    ("training/sources.py", "ask for an accuracy in this range, or train a better encoder"),
    ("training/sources.py", "predict them for the donors"),
    ("training/sources.py", "use more images per class"),
)
def test_controls_that_lack_responses(folder, env):
    study, encoder = trained.study(), trained.encoder()
    train = study.set("train")
    store = trained.context().store

    def predicted(stimuli):
        return encoder.predict_stimuli(stimuli, store=store, device="cpu")

    reference = [predicted(train)[:1]]
    yield lambda: noise_source(reference[-1])
    reference.append(predicted(train))
    noise_source(reference[-1])
    accuracy = [0.5]
    source = EncoderSource(encoder)
    yield lambda: mixed_source(source, reference[-1], accuracy=accuracy[-1], reached=0.3)
    mixed_source(source, reference[-1], accuracy=accuracy[-1], reached=0.6)
    accuracy.append(0.3)
    mixed_source(source, reference[-1], accuracy=accuracy[-1], reached=0.3)
    donors = [train.subset([0])]
    yield lambda: other_image_source(donors[-1], reference[-1])
    reference.append(predicted(donors[-1]))
    other_image_source(donors[-1], reference[-1])
    yield lambda: other_image_source(
        donors[-1], predicted(donors[-1]), classes=lambda tokens: train.labels[:1]
    )(NO_TOKENS, train.ids[:1])
    donors.append(train)


@follows(
    (
        "training/study_models.py",
        "add the line 'subject: demo' to the study file, or leave these models out",
    ),
)
def test_models_that_need_a_subject(folder, env):
    env.setenv("BMFL_HOME", str(folder))
    study = dataclasses.replace(trained.study(), subjects={})
    models = ["backbone", "fusion"]
    configs = (trained.fusion_config(), trained.RIDGE)
    yield lambda: train_models(
        study, models, configs, seeds=[0], store=trained.context().store, device="cpu"
    )
    models.remove("fusion")


@follows(
    (
        "training/variants.py",
        "leave out what lies outside; the first encoder has all stimuli and no noise",
    ),
)
def test_an_encoder_that_is_as_trained(folder, env):
    env.setenv("BMFL_HOME", str(folder))
    shares = [0.5, 1.0]
    options = {"store": trained.context().store, "device": "cpu", "sizes": ()}
    yield lambda: encoder_variants(trained.RIDGE, trained.study(), noise=shares, **options)
    shares.remove(1.0)


@follows(("training/__main__.py", "give a spec of one of these notebooks"))
def test_a_spec_of_another_notebook(folder, env):
    specs = ["06_attention_maps", "03_fusion_training"]
    runs = [[Run("spec", Notebook(NOTEBOOKS / f"{name}.ipynb", {}), {})] for name in specs]
    yield lambda: command._trained(runs[0], "spec")
    del runs[0]
