"""The remedies of fusion models, and of what compares, saves and opens them, each followed."""

import dataclasses
import functools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import trained
from following import follows

from bmfl_lab.backbones import load_backbone
from bmfl_lab.data import load_study
from bmfl_lab.records import Record
from bmfl_lab.training import (
    agreement,
    compare,
    fusion,
    load_fusion,
    open_models,
    open_study,
    save_models,
    train_attribute_encoder,
    train_comparison,
    train_controls,
    train_fusion,
)
from bmfl_lab.training.compare import train_baselines
from bmfl_lab.training.external import ExternalEncoder
from bmfl_lab.training.names import COMPARED, CONTROL_MODELS
from bmfl_lab.training.saved import OpenedStudy
from bmfl_lab.training.sources import EncoderSource, projection_source

OPTIONS = {"store": trained.context().store, "device": "cpu"}
BACKBONE = {"name": "vit_tiny14", "weights": "random:0", "image_size": 56, "device": "cpu"}


def train(study=None, encoder=None, **given):
    """Train a fusion for one step; fields of its configuration may be among `given`."""
    changes = {
        k: given.pop(k) for k in list(given) if k in fusion.FusionConfig.__dataclass_fields__
    }
    return train_fusion(
        trained.fusion_config(**changes),
        trained.study() if study is None else study,
        encoder=trained.encoder() if encoder is None else encoder,
        context=trained.context(),
        **given,
    )


def with_training_images(images):
    """Return the study with other training images."""
    study = trained.study()
    return dataclasses.replace(study, sets={**study.sets, "train": images})


@follows(
    ("training/fusion.py", "label or drop the others"),
    ("training/fusion.py", "label or drop the others"),
    ("training/fusion.py", "add images to this set"),
)
def test_training_images_without_labels(folder, env):
    images = trained.study().set("train")
    labels = np.array(images.labels)
    labels[3] = -1
    fewer = dataclasses.replace(images, labels=labels)
    sets = [fewer]
    yield lambda: train(with_training_images(sets[-1]))
    sets.append(images)
    train(with_training_images(sets[-1]))
    sets.append(fewer)
    yield lambda: train(with_training_images(sets[-1]))
    sets.append(fewer.subset(np.flatnonzero(labels >= 0)))
    train(with_training_images(sets[-1]))
    sets.append(images.subset([]))
    yield lambda: train(with_training_images(sets[-1]))
    sets.append(images)


@follows(("training/fusion.py", "train in one process, or correlate over features"))
def test_a_correlation_over_a_batch_that_is_divided(folder, env):
    env.setenv("WORLD_SIZE", "2")
    yield lambda: train(pcc_axis="batch")
    env.delenv("WORLD_SIZE")


@follows(
    ("training/fusion.py", "set batches='images', or augment='none' in the FusionConfig"),
    ("training/fusion.py", "set batches='images', or augment='none' in the FusionConfig"),
)
def test_augmented_images_from_a_store(folder, env):
    given = {"batches": "store", "augment": "crop_flip"}
    remedy = yield lambda: train(**given)
    given["batches"] = re.search("batches='(.*?)'", remedy)[1]
    train(**given)
    given["batches"] = "store"
    remedy = yield lambda: train(**given)
    given["augment"] = re.search("augment='(.*?)'", remedy)[1]


@follows(
    ("training/fusion.py", "use batches='store', kind='pooled:4' or fewer images"),
    ("training/fusion.py", "use batches='store', kind='pooled:4' or fewer images"),
)
def test_tokens_that_do_not_fit_into_memory(folder, env):
    env.setattr(fusion, "free_memory", lambda: 60_000)
    large = load_backbone(**{**BACKBONE, "image_size": 112})
    given = {"batches": "memory", "kind": "patches", "backbone": large}
    remedy = yield lambda: train(**given)
    given["batches"] = re.search("batches='(.*?)'", remedy)[1]
    train(**given)
    given["batches"] = "memory"
    train(with_training_images(trained.study().set("train").subset(range(8))), **given)
    remedy = yield lambda: train(**given)
    given["kind"] = re.search("kind='(.*?)'", remedy)[1]


@follows(
    ("training/fusion.py", "make the mask with the encoder's atlas"),
    ("training/fusion.py", "use head='fusion' or 'concat', or leave silent out"),
)
def test_silent_vertices_of_another_atlas(folder, env):
    mask, heads = [np.ones(5, bool)], ["fusion"]
    yield lambda: train(head=heads[-1], silent=mask[-1])
    mask.append(trained.encoder().atlas.select("V1"))
    train(head=heads[-1], silent=mask[-1])
    heads.append("backbone")
    remedy = yield lambda: train(head=heads[-1], silent=mask[-1])
    train(head="backbone")
    for head in re.findall("'(.*?)'", remedy):
        heads.append(head)
        train(head=head, silent=mask[-1])


@follows(
    ("training/fusion.py", "use head='fusion'"),
    ("training/fusion.py", "use head='fusion' or 'concat'"),
    (
        "training/compare.py",
        "pass a model with head='fusion' or 'concat', and at least one image",
    ),
    (
        "training/compare.py",
        "pass a model with head='fusion' or 'concat', and at least one image",
    ),
)
def test_what_a_head_does_not_have(folder, env):
    images = [trained.study().set("test")]
    heads = ["concat"]
    remedy = yield lambda: trained.model(heads[-1]).attention(images[-1])
    heads.append(re.search("head='(.*)'", remedy)[1])
    trained.model(heads[-1]).attention(images[-1])
    heads.append("backbone")
    remedy = yield lambda: trained.model(heads[-1]).predict_responses(images[-1])
    for head in re.findall("'(.*?)'", remedy):
        heads.append(head)
        trained.model(head).predict_responses(images[-1])
    heads.append("backbone")
    remedy = yield lambda: agreement(trained.model(heads[-1]), images[-1])
    for head in re.findall("'(.*?)'", remedy):
        heads.append(head)
        agreement(trained.model(head), images[-1])
    images.append(images[0].subset([]))
    yield lambda: agreement(trained.model(heads[-1]), images[-1])
    images.append(images[0])


@follows(
    ("training/fusion.py", "load the backbone with the image_size and resize of the training"),
    ("training/fusion.py", "load the backbone that the model was trained on"),
    ("training/fusion.py", "pass the encoder that the model was trained on"),
    (
        "training/fusion.py",
        "pass brain=..., or encoder=... if its responses were predicted",
    ),
)
def test_a_model_is_opened_with_other_parts(folder, env):
    trained.model().save(folder)
    backbone, given = dict(BACKBONE), {"context": trained.context()}

    def load():
        return load_fusion(folder, load_backbone(**backbone), **given)

    backbone |= {"image_size": 28, "resize": "direct"}
    remedy = yield load
    for name in re.search(r"the (\w+) and (\w+) of the training", remedy).groups():
        backbone[name] = getattr(trained.study().backbone, name)
    load()
    backbone["weights"] = "random:3"
    yield load
    backbone["weights"] = trained.study().backbone.weights
    person = trained.study().subject()
    few = person.atlas.select("V1")
    part = dataclasses.replace(
        person,
        responses=person.responses[:, few],
        atlas=person.atlas.subset(few),
        noise_ceiling=None,
        repeats=None,
    )
    study = dataclasses.replace(trained.study(), subjects={part.name: part})
    given["encoder"] = trained.train_encoder(trained_on=study)
    yield load
    given["encoder"] = trained.encoder()
    load()
    del given["encoder"]
    shutil.rmtree(folder / "encoder")
    trained.model().save(folder, with_encoder=False)
    remedy = yield load
    brain, encoder = re.findall(r"(\w+)=\.\.\.", remedy)
    load_fusion(
        folder, load_backbone(**backbone), **{**given, brain: EncoderSource(trained.encoder())}
    )
    given[encoder] = trained.encoder()


@follows(
    ("training/compare.py", "train one with train_brain_encoder and pass encoder=..."),
    (
        "training/compare.py",
        "train it with train_attribute_encoder and pass attribute_encoder=...",
    ),
)
def test_a_comparison_without_its_encoders(folder, env):
    given = {"models": ["fusion"], "seeds": [0], "folder": folder, **OPTIONS}
    remedy = yield lambda: train_comparison(trained.fusion_config(), trained.study(), **given)
    given[re.search(r"pass (\w+)=", remedy)[1]] = trained.encoder()
    train_comparison(trained.fusion_config(), trained.study(), **given)
    given["models"] = ["attributes"]
    remedy = yield lambda: train_comparison(trained.fusion_config(), trained.study(), **given)
    with pytest.warns(UserWarning, match="penalty grid"):
        given[re.search(r"pass (\w+)=", remedy)[1]] = train_attribute_encoder(
            trained.RIDGE, trained.study(), folder=folder / "attributes", **OPTIONS
        )


@follows(
    ("training/compare.py", "give lengths in this range, or raise the epochs of the comparison")
)
def test_baselines_that_are_not_shorter(folder, env):
    lengths = [1]
    epochs = [1]

    def baselines():
        loop = trained.configured(trained.LOOP, epochs=epochs[-1])
        config = trained.fusion_config(loop=loop)
        return train_baselines(config, trained.study(), epochs=lengths, folder=folder, **OPTIONS)

    yield baselines
    epochs.append(2)


@follows(
    (
        "training/compare.py",
        "pass the configuration of the brain encoder as encoder_config=...",
    ),
    ("training/compare.py", "leave these controls out"),
    (
        "training/compare.py",
        "leave 'attributes' out of the models: this control needs a simulated subject",
    ),
    (
        "training/compare.py",
        "return it in _ControlSources.get of bmfl_lab/training/compare.py",
    ),
)
def test_controls_that_cannot_be_trained(folder, env):
    env.setenv("BMFL_HOME", str(folder))
    studies, controls, encoders = [trained.study()], ["attributes"], [trained.encoder()]
    given = {"seeds": [0], "folder": folder, **OPTIONS}

    def control():
        return train_controls(
            trained.fusion_config(),
            studies[-1],
            encoder=encoders[-1],
            controls=controls,
            **given,
        )

    remedy = yield control
    given[re.search(r"as (\w+)=", remedy)[1]] = trained.RIDGE
    with pytest.warns(UserWarning, match="penalty grid"):
        control()
    person = trained.study().subject()
    images = trained.study().set("train")
    predicted = dataclasses.replace(
        person,
        stimuli=images,
        responses=np.zeros((len(images), person.n_vertices), np.float32),
        **{"kind": "predicted", "splits": {}, "attributes": None, "repeats": None},
        **{"sessions": None, "noise_ceiling": None},
    )
    encoders.append(ExternalEncoder(predicted, trained.study().backbone))
    controls[:] = ["backbone", "random encoder"]
    yield control
    controls.remove("random encoder")
    control()
    encoders.append(trained.encoder())
    measured = dataclasses.replace(person, kind="measured", attributes=None)
    studies.append(dataclasses.replace(studies[0], subjects={person.name: measured}))
    controls.append("attributes")
    yield control
    controls.remove("attributes")
    control()
    n_vertices = trained.encoder().atlas.n_vertices
    env.setitem(CONTROL_MODELS, "zeros", "no response at all")
    controls.append("zeros")
    remedy = yield control
    owner, name = re.search(r"in (\w+)\.(\w+) of", remedy).groups()
    known = getattr(getattr(compare, owner), name)

    def get(self, name, seed):
        return (projection_source(n_vertices), None) if name == "zeros" else known(self, name, seed)

    env.setattr(getattr(compare, owner), name, get)


STUDY = "".join(
    f"{name}: {value}\n" for name, value in {"study": "planted", **trained.SIZES}.items()
)


@functools.cache
def run():
    """Return the folder of a run of notebook 03 whose models were trained on a study file."""
    place = Path(trained.FOLDER.name) / "project"
    place.mkdir()
    (place / "study.yaml").write_text(STUDY)
    save_run(place / "out" / "main" / "run", place / "study.yaml")
    return place


def save_run(folder, study):
    """Save models as a run of notebook 03 does."""
    record = Record("03_fusion_training", {"study": str(study)}, load_study(study).summary())
    record.add("accuracy", 0.5, unit="fraction", split="test", n=8, selection="none")
    save_models({"fusion": [trained.model()], "backbone": [trained.model("backbone")]}, folder)
    record.finish(folder)


def copied(folder):
    """Return a copy of the run, which may be spoiled, and its study file."""
    shutil.copytree(run() / "out", folder / "out")
    file = Path(shutil.copy(run() / "study.yaml", folder))
    return folder / "out" / "main" / "run", file


@follows(
    ("training/saved.py", "leave subject empty, or open the models of {}"),
    ("training/saved.py", "leave subject empty, or open the models of {}"),
    ("training/saved.py", "open a run of notebook 03 whose models include {}"),
    ("training/saved.py", "choose one of the two"),
)
def test_opened_models_of_another_subject_or_name(folder, env):
    place, _ = copied(folder)
    shutil.rmtree(place / "models" / "backbone")
    opened = [open_study("planted", [place], **OPTIONS)]
    names = ["sub-02"]
    yield lambda: opened[-1].subject(names[-1])
    names.append("")
    opened[-1].subject(names[-1])
    names.append("sub-02")
    remedy = yield lambda: opened[-1].subject(names[-1])
    wanted = re.search("models of '(.*)'", remedy)[1]
    person = dataclasses.replace(trained.study().subject(), name=wanted)
    encoder = dataclasses.replace(
        trained.encoder(), facts={**trained.encoder().facts, "subject": wanted}
    )
    study = dataclasses.replace(trained.study(), subjects={wanted: person})
    model = train(study, encoder=encoder)
    opened.append(OpenedStudy(study, {"fusion": [model]}))
    opened[-1].subject(names[-1])
    opened.append(opened[0])
    remedy = yield lambda: opened[-1].model("backbone", 0)
    wanted = re.search("include '(.*)'", remedy)[1]
    shutil.copytree(run() / "out", folder / "again")
    assert (folder / "again" / "main" / "run" / "models" / wanted).is_dir()
    opened.append(open_study("planted", [folder / "again" / "main"], **OPTIONS))
    opened[-1].model("backbone", 0)
    models = ["concat", place]
    yield lambda: open_study("planted", models, trainable=COMPARED, **OPTIONS)
    models.remove("concat")


@follows(
    ("training/saved.py", "run the spec first"),
    ("training/saved.py", "run notebook 03, which saves its models, and give its folder"),
)
def test_a_run_without_models(folder, env):
    (folder / "specs").mkdir()
    spec = folder / "specs" / "main.yaml"
    yield lambda: open_models(spec, **OPTIONS)
    place, _ = copied(folder)
    open_models(spec, **OPTIONS)
    places = [folder / "specs"]
    yield lambda: open_models(places[-1], **OPTIONS)
    places.append(place)


@follows(
    ("training/saved.py", "pass study=, the study that the models were trained on"),
    ("training/saved.py", "pass study=, the study that the model was trained on"),
    ("training/saved.py", "restore the data, or pass study= to use the models on these"),
    ("training/saved.py", "restore the data, or pass study= to use the models on these"),
)
def test_models_of_another_study(folder, env):
    place, _ = copied(folder)
    (place / "record.json").rename(folder / "record.json")
    given = {}
    remedy = yield lambda: open_models(place, **given, **OPTIONS)
    given[re.search(r"pass (\w+)=", remedy)[1]] = trained.study()
    open_models(place, **given, **OPTIONS)
    train = trained.study().set("train")
    renamed = dataclasses.replace(train, class_names=tuple("abcd"))
    given["study"] = with_training_images(renamed)
    remedy = yield lambda: open_models(place, **given, **OPTIONS)
    given[re.search(r"pass (\w+)=", remedy)[1]] = trained.study()
    open_models(place, **given, **OPTIONS)
    shutil.rmtree(place)
    file = folder / "study.yaml"
    save_run(place, file)
    file.write_text(STUDY + "seed: 5\n")
    given = {}
    remedy = yield lambda: open_models(place, **given, **OPTIONS)
    given[re.search(r"pass (\w+)=", remedy)[1]] = file
    open_models(place, **given, **OPTIONS)
    del given["study"]
    yield lambda: open_models(place, **given, **OPTIONS)
    file.write_text(STUDY)
