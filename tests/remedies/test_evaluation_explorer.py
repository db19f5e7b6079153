"""The remedies of the explorer, of encoders on the planted study and of pointing, each followed."""

import dataclasses
import re

import evaluation_example as example
import numpy as np
from following import follows

from bmfl_lab.evaluation import Explorer, as_model, attention, pointing
from bmfl_lab.evaluation.encoding import (
    evaluate_encoder_shifts,
    orientation_tuning_error,
    receptive_field_error,
)
from bmfl_lab.evaluation.explorer import BACKBONE, CONSULTED, ENCODER, LOOKED
from bmfl_lab.models.lesion import Lesion


def bare():
    """Return the study without its subject."""
    return dataclasses.replace(example.study(), subjects={})


def unknown():
    """Return the study with a subject of whom nothing but the responses is known."""
    person = dataclasses.replace(example.study().subject(), truth={}, noise_ceiling=None)
    return dataclasses.replace(example.study(), subjects={person.name: person})


def explorer(study=None, models=None, encoder=None):
    return Explorer(study or example.study(), models, encoder, store=example.STORE)


@follows(
    (
        "evaluation/explorer.py",
        "train one with train_brain_encoder and pass it to the Explorer",
    ),
    ("evaluation/explorer.py", "train one with train_fusion and pass it to the Explorer"),
    ("evaluation/explorer.py", "train one with presets(..., encoder='roi_query')"),
)
def test_an_explorer_of_a_study_alone(folder, env):
    shown = [explorer()]
    yield lambda: shown[-1].predicted("test", 0)
    shown.append(explorer(encoder=example.encoder("ridge")))
    shown[-1].predicted("test", 0)
    yield lambda: shown[-1].probabilities("fusion", "test", 0)
    shown.append(explorer(models={"fusion": example.fusion(head="backbone")}))
    shown[-1].probabilities("fusion", "test", 0)
    shown.append(explorer(encoder=example.encoder("ridge")))
    remedy = yield lambda: shown[-1].map_choices(ENCODER)
    kind = re.search(r"encoder='(\w+)'", remedy)[1]
    shown.append(explorer(encoder=example.encoder(kind)))


@follows(
    ("evaluation/explorer.py", "load a study with responses"),
    ("evaluation/explorer.py", "load a study with responses"),
    ("evaluation/explorer.py", "choose another map, or a subject with a noise ceiling"),
    ("evaluation/explorer.py", "load a study with an image set of classes"),
)
def test_studies_without_responses_ceilings_or_classes(folder, env):
    study = [bare()]
    yield lambda: explorer(study[-1]).measured(0)
    study.append(example.study())
    explorer(study[-1]).measured(0)
    study.append(bare())
    yield lambda: explorer(study[-1]).mask(["V1"])
    study.append(example.study())
    explorer(study[-1]).mask(["V1"])
    study.append(unknown())
    yield lambda: explorer(study[-1]).ceiling()
    study.append(example.study())
    explorer(study[-1]).ceiling()

    few = example.images(n=2)
    unlabelled = dataclasses.replace(few, labels=np.full(2, -1), class_names=())
    study.append(dataclasses.replace(example.study(), sets={"test": unlabelled}, ood=()))
    yield lambda: explorer(study[-1], encoder=example.encoder()).tuning(np.arange(3))
    study.append(dataclasses.replace(example.study(), sets={"test": few}, ood=()))


@follows(
    ("evaluation/explorer.py", "choose one of {}"),
    ("evaluation/explorer.py", "train one with train_fusion and pass it to the Explorer"),
    ("evaluation/explorer.py", "choose a model that was trained with head='fusion'"),
)
def test_models_without_a_brain(folder, env):
    plain = as_model(lambda images: [[image.mean(), 0, 0, 0] for image in images], "plain")
    models, name = {"plain": plain}, ["plain"]
    lesion = Lesion(example.study().subject().atlas.select("V1"))

    def call():
        return explorer(models=models).probabilities(name[-1], "test", 0, lesion=lesion)

    models |= {"baseline": example.fusion(head="backbone"), "fusion": example.fusion(query="cls")}
    remedy = yield call
    name.append(re.search(r"one of (\w+)", remedy)[1])
    call()
    name.append("plain")
    del models["fusion"]
    yield call
    models["plain"] = example.fusion(query="cls")
    call()
    models["plain"] = example.fusion(head="backbone")

    remedy = yield lambda: explorer(models=models).map_choices(LOOKED, "plain")
    models["plain"] = example.fusion(head=re.search(r"head='(\w+)'", remedy)[1], query="cls")


@follows(
    ("evaluation/explorer.py", "choose a number in this range"),
    ("evaluation/explorer.py", "choose a patch of this grid"),
    ("evaluation/explorer.py", "choose one of these heads, or -1 for their mean"),
    (
        "evaluation/explorer.py",
        "choose one of them; a lesion of ROIs tests the weights of the image over them",
    ),
)
def test_images_patches_heads_and_checks_that_do_not_exist(folder, env):
    shown = explorer(encoder=example.encoder())
    index, patch, head, source = [99], [(4, 0)], [99], [CONSULTED]
    yield lambda: shown.image("test", index[-1])
    index.append(0)
    yield lambda: shown.patch_effect("test", 0, patch=patch[-1], grid=(4, 4))
    patch.append((3, 0))
    shown.patch_effect("test", 0, patch=patch[-1], grid=(4, 4))
    remedy = yield lambda: shown.attention(BACKBONE, "test", 0, head=head[-1])
    head.append(int(re.search(r"(-\d)", remedy)[1]))
    shown.attention(BACKBONE, "test", 0, head=head[-1])
    shown.attention(BACKBONE, "test", 0, head=0)
    yield lambda: shown.check_map(source[-1], n=2)
    source.append(ENCODER)


@follows(
    (
        "evaluation/encoding.py",
        "use the planted or the demo study, whose subjects are simulated",
    ),
    ("evaluation/encoding.py", "use kind='retinotopic' on the planted study"),
    ("evaluation/encoding.py", "use the planted study"),
)
def test_encoders_where_the_truth_is_unknown(folder, env):
    study, kind = [unknown()], ["ridge"]

    def shifts():
        return evaluate_encoder_shifts(
            example.encoder(), study[-1], [("masked", 1)], n_boot=5, device="cpu"
        )

    yield shifts
    study.append(example.study())
    shifts()
    remedy = yield lambda: receptive_field_error(example.encoder(kind[-1]), study[-1])
    kind.append(re.search(r"kind='(\w+)'", remedy)[1])
    receptive_field_error(example.encoder(kind[-1]), study[-1])
    study.append(unknown())
    yield lambda: orientation_tuning_error(
        example.encoder(), study[-1], store=example.STORE, device="cpu"
    )
    study.append(example.study())


@follows(
    (
        "evaluation/pointing.py",
        "pass the maps that roi_attention returns for one or more images",
    ),
    (
        "evaluation/pointing.py",
        "average attention over images and heads first, as roi_fields does",
    ),
    (
        "evaluation/pointing.py",
        "pass more images: a field is a standard deviation over images",
    ),
)
def test_fields_of_other_maps_and_of_one_image(folder, env):
    encoder, n = example.encoder(), [1]
    whole = attention.roi_attention(encoder, example.images(), store=example.STORE)
    maps = [whole[0]]
    yield lambda: pointing.roi_fields(maps[-1])
    maps.append(whole)
    fields = [whole]
    yield lambda: pointing.field_centres(fields[-1], 8)
    fields.append(pointing.roi_fields(whole))
    yield lambda: pointing.vertex_fields(encoder, example.images(n=n[-1]), store=example.STORE)
    n.append(2)


@follows(
    (
        "evaluation/pointing.py",
        "use a subject with retinotopy, or leave this comparison out",
    ),
    ("evaluation/pointing.py", "estimate one per vertex"),
)
def test_centres_of_an_atlas_without_retinotopy_and_of_queries(folder, env):
    whole = example.study().subject().atlas
    atlas = [dataclasses.replace(whole, maps={})]
    yield lambda: pointing.true_centres(atlas[-1])
    atlas.append(whole)
    fields = [np.random.default_rng(0).random((14, 4, 4))]
    yield lambda: pointing.retinotopy_agreement(
        pointing.field_centres(fields[-1], 8), whole, n_shuffles=5
    )
    fields.append(np.random.default_rng(0).random((whole.n_vertices, 4, 4)))
