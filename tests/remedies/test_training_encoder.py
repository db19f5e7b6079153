"""The remedies of brain encoders, each followed."""

import dataclasses
import re

import numpy as np
import torch
import trained
from following import follows

from bmfl_lab.backbones import load_backbone
from bmfl_lab.training import (
    EncoderConfig,
    checkpoint,
    combine_encoders,
    combine_subjects,
    image_function,
    load_encoder,
)
from bmfl_lab.training.encoder import encoder_loss, scheme_rois, split_rows
from bmfl_lab.training.trained_encoder import STEM, WHAT


def person(**splits):
    """Return the subject with other splits."""
    return dataclasses.replace(trained.study().subject(), splits=splits)


@follows(
    ("training/encoder.py", "use e.g. blocks=(-1,) and val_fraction=0.1"),
    ("training/encoder.py", "use 'patches' or 'pooled:G'"),
)
def test_choices_that_make_no_encoder(folder, env):
    given = {"blocks": (), "val_fraction": 2}
    remedy = yield lambda: EncoderConfig(**given)
    given = eval(f"dict({remedy.removeprefix('use e.g. ').replace(' and', ',')})")
    EncoderConfig(**given)
    tokens = ["cls"]
    remedy = yield lambda: EncoderConfig(kind="retinotopic", tokens=tokens[-1])
    for kind in re.findall("'(.*?)'", remedy):
        tokens.append(kind.replace("G", "4"))
        EncoderConfig(kind="retinotopic", tokens=tokens[-1])


@follows(
    ("training/encoder.py", "set val_fraction={}"),
    ("training/encoder.py", "give 4 or more training stimuli"),
    (
        "training/encoder.py",
        "move stimuli from one split to the other, so that 'val' has 3 or more",
    ),
)
def test_too_few_stimuli_for_validation(folder, env):
    fraction, people = [0.1], [person(train=np.arange(7))]
    remedy = yield lambda: split_rows(EncoderConfig(val_fraction=fraction[-1]), people[-1])
    fraction.append(float(re.search("val_fraction=(.*)", remedy)[1]))
    people.append(person(train=np.arange(3)))
    remedy = yield lambda: split_rows(EncoderConfig(val_fraction=0.9), people[-1])
    n = int(re.search(r"give (\d)", remedy)[1])
    people.append(person(train=np.arange(n)))
    split_rows(EncoderConfig(val_fraction=0.75), people[-1])
    people.append(person(train=np.arange(9), val=np.array([9])))
    yield lambda: split_rows(EncoderConfig(), people[-1])
    people.append(person(train=np.arange(7), val=np.arange(7, 10)))


@follows(
    ("training/encoder.py", "use scheme='rois'"),
    ("training/encoder.py", "train the encoder on the vertices of these responses"),
)
def test_vertices_that_an_encoder_does_not_have(folder, env):
    atlas, scheme = trained.study().subject().atlas, ["streams"]
    remedy = yield lambda: scheme_rois(atlas, scheme[-1])
    scheme.append(re.search("scheme='(.*)'", remedy)[1])
    scheme_rois(atlas, scheme[-1])
    predicted = [torch.zeros(4, 6)]
    yield lambda: encoder_loss(predicted[-1], torch.zeros(4, 8), torch.ones(8), 4)
    predicted.append(torch.zeros(4, 8))


@follows(("training/encoder.py", "set leave_session_out=False"))
def test_sessions_that_are_not_known(folder, env):
    study, given = trained.study(), {"leave_session_out": True}
    unknown = dataclasses.replace(study.subject(), sessions=None)
    study = dataclasses.replace(study, subjects={unknown.name: unknown})
    remedy = yield lambda: trained.train_encoder(trained.configured(trained.RIDGE, **given), study)
    name, value = re.search(r"set (\w+)=(\w+)", remedy).groups()
    given[name] = eval(value)


@follows(("training/encoder.py", "use another folder, or train again with fresh=True"))
def test_the_folder_of_another_encoder(folder, env):
    trained.train_encoder(folder=folder / "first")
    given = {"folder": folder / "first"}
    other = trained.configured(trained.RIDGE, n_folds=3)
    remedy = yield lambda: trained.train_encoder(other, **given)
    trained.train_encoder(other, folder=folder / "another")
    given["fresh"] = eval(re.search(r"fresh=(\w+)", remedy)[1])


def tokens(kind):
    """Return stored tokens of the test images."""
    images = trained.study().set("test")
    return trained.context().store.get(trained.backbone(), images, kind)


@follows(
    ("training/trained_encoder.py", "extract them with encoder.tokens(...)"),
    ("training/trained_encoder.py", "get them with encoder.tokens(...)"),
)
def test_tokens_of_another_kind(folder, env):
    encoder, images = trained.encoder(), trained.study().set("test")
    given = [tokens("patches")]
    remedy = yield lambda: encoder.predict(given[-1], device="cpu")
    given.append(getattr(encoder, re.search(r"encoder\.(\w+)", remedy)[1])(images, device="cpu"))
    encoder.predict(given[-1], device="cpu")
    given.append([*given[-1], tokens("patches")])
    remedy = yield lambda: encoder.predict(given[-1], device="cpu")
    given.append(getattr(encoder, re.search(r"encoder\.(\w+)", remedy)[1])(images, device="cpu"))


@follows(("training/trained_encoder.py", "pass the backbone of the training as backbone=..."))
def test_a_backbone_that_cannot_be_loaded_by_name(folder, env):
    own = load_backbone("vit_tiny14", "random:7", image_size=56, device="cpu")
    encoder, given = trained.train_encoder(backbone=own), {}
    remedy = yield lambda: image_function(encoder, device="cpu", **given)
    given[re.search(r"as (\w+)=", remedy)[1]] = own


def of_two_subjects():
    """Return a study of two subjects, and the encoder of each."""
    study = trained.study(complementary=True)
    return study, {
        name: trained.train_encoder(trained_on=study, subject=name) for name in study.subjects
    }


@follows(
    ("training/trained_encoder.py", "name more of them"),
    (
        "training/trained_encoder.py",
        "combine encoders of the same subject, trained on the same backbone",
    ),
    (
        "training/trained_encoder.py",
        "train an encoder for each subject, with train_brain_encoder(..., subject=NAME)",
    ),
    ("training/trained_encoder.py", "train all of them on the same backbone"),
    (
        "training/trained_encoder.py",
        "give the folder of this subject's encoder, or train one",
    ),
)
def test_encoders_that_do_not_belong_together(folder, env):
    study, own = of_two_subjects()
    (first, encoder), (second, other) = own.items()
    members = {"one": encoder}
    yield lambda: combine_encoders(members)
    members["two"] = trained.train_encoder(
        trained.configured(trained.RIDGE, blocks=(0,)), trained_on=study, subject=first
    )
    combine_encoders(members)
    random = trained.configured(trained.RIDGE, weights="random:1")
    members["two"] = trained.train_encoder(random, trained_on=study, subject=first)
    yield lambda: combine_encoders(members)
    members["two"] = trained.train_encoder(trained_on=study, subject=first)
    combine_encoders(members)
    people = {first: encoder}
    remedy = yield lambda: combine_subjects(people)
    option = re.search(r"(\w+)=NAME", remedy)[1]
    people[second] = trained.train_encoder(trained_on=study, **{option: second})
    combine_subjects(people)
    people[second] = trained.train_encoder(random, trained_on=study, subject=second)
    yield lambda: combine_subjects(people)
    people[second] = other
    combine_subjects(people)
    for name, each in own.items():
        each.save(folder / name)
    places = [folder / second]
    yield lambda: load_encoder(places[-1], study.subject(first))
    trained.train_encoder(trained_on=study, subject=first, folder=folder / "trained")
    load_encoder(folder / "trained", study.subject(first))
    places.append(folder / first)


@follows(
    (
        "training/trained_encoder.py",
        "read it with the version of bmfl_lab that wrote it, or train again",
    ),
)
def test_an_encoder_of_a_later_version(folder, env):
    trained.encoder().save(folder)
    tensors, manifest = checkpoint.read_bundle(folder, STEM)
    manifest["build"]["type"] = "a later kind"
    checkpoint.write_bundle(folder, STEM, tensors, manifest, what=WHAT)
    yield lambda: load_encoder(folder)
    trained.train_encoder(folder=folder, fresh=True)
