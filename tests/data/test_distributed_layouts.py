"""Each promised layout is read from a small twin of what its authors distribute.

A twin has the folders, the names and the files beside them that a user finds after unpacking.
"""

import pickle

import nod_example
import numpy as np
import pytest
from algonauts_example import make_subject
from nsd_example import PER_SESSION, make_root
from PIL import Image
from scipy.io import savemat
from test_kamitani import NUMBERS, pictures, write, write_part
from test_modelvshuman import write_trials

from bmfl_lab import load_study
from bmfl_lab.data import algonauts, modelvshuman, nsd_files
from bmfl_lab.data.things_eeg import read_with_images

WNIDS = tuple(f"n{1440764 + 97 * i:08d}" for i in range(4))
TINY = {"backbone": "vit_tiny14", "weights": "random:0", "image_size": 28, "partial": True}


def picture(path, seed):
    """Write a small picture that no other seed gives, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def many(folder, names, first=0):
    for i, name in enumerate(names):
        picture(folder / name, first + i)


def sizes(study):
    return {name: len(images) for name, images in study.sets.items()}


def class_folders(folder):
    for k, part in enumerate(("train", "val", "test")):
        many(folder / part, [f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(4)], 10 * k)
    return sizes(load_study(folder)), {"train": 8, "val": 8, "test": 8}


def class_folders_of_roboflow(folder):
    for k, part in enumerate(("train", "valid", "test")):
        many(folder / part, [f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(4)], 10 * k)
    (folder / "README.dataset.txt").write_text("exported")
    return sizes(load_study(folder)), {"train": 8, "val": 8, "test": 8}


def one_level_of_classes(folder):
    """101_ObjectCategories and the like, packed by macOS."""
    many(folder, [f"{c}/image_{i:04d}.jpg" for c in ("ant", "yin_yang") for i in range(10)])
    (folder / "__MACOSX/ant").mkdir(parents=True)
    (folder / "__MACOSX/ant/._image_0000.jpg").write_bytes(b"\0\5\x16\7")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    found = sizes(load_study(folder))
    return (sum(found.values()), set(found)), (20, {"train", "val", "test"})


def _domains(study):
    found = sizes(study)
    inner = sum(found.pop(name) for name in ("train", "val", "test"))
    return inner, found


def pacs(folder):
    names = [f"{c}/pic_{i:03d}.jpg" for c in ("dog", "elephant") for i in range(1, 11)]
    for k, domain in enumerate(("art_painting", "cartoon", "photo", "sketch")):
        many(folder / "PACS" / domain, names, 100 * k)
    study = load_study("domains", root=folder / "PACS", train="photo")
    return _domains(study), (20, {"art_painting": 20, "cartoon": 20, "sketch": 20})


def office_home(folder):
    root = folder / "OfficeHomeDataset_10072016"
    names = [f"{c}/{i:05d}.jpg" for c in ("Alarm_Clock", "Backpack") for i in range(1, 11)]
    for k, domain in enumerate(("Art", "Clipart", "Product", "Real World")):
        many(root / domain, names, 100 * k)
    (root / "ImageInfo.csv").write_text("Domain,Class,Image\n")
    (root / "imagelist.txt").write_text("Art/Alarm_Clock/00001.jpg\n")
    study = load_study("domains", root=root, train="Real World")
    return _domains(study), (20, {"Art": 20, "Clipart": 20, "Product": 20})


def domainnet(folder):
    for k, domain in enumerate(("clipart", "real")):
        names = [f"{c}/{domain}_{n}.jpg" for c in ("aircraft_carrier", "zebra") for n in range(10)]
        many(folder / domain, names, 100 * k)
        for part in ("train", "test"):
            (folder / f"{domain}_{part}.txt").write_text(f"{domain}/{names[0]} 0\n")
    return _domains(load_study("domains", root=folder, train="real")), (20, {"clipart": 20})


def _train(root):
    for k, wnid in enumerate(WNIDS):
        many(root / "train" / wnid, [f"{wnid}_{i}.JPEG" for i in range(5)], 50 * k)
    return root


IMAGENET = {"train": 12, "val": 8, "test": 4}


def imagenet_of_kaggle(folder):
    root = _train(folder / "ILSVRC/Data/CLS-LOC")
    many(root / "val", [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)], 1000)
    many(root / "test", [f"ILSVRC2012_test_{i:08d}.JPEG" for i in range(1, 3)], 2000)
    lines = [f"ILSVRC2012_val_{i:08d},{w} 1 1 9 9 \n" for i, w in enumerate(WNIDS[::-1], 1)]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{w} tench, fish\n" for w in WNIDS))
    (folder / "LOC_sample_submission.csv").write_text("ImageId,PredictionString\n")
    (folder / "ILSVRC/Annotations/CLS-LOC/val").mkdir(parents=True)
    (folder / "ILSVRC/ImageSets/CLS-LOC").mkdir(parents=True)
    study = load_study("imagenet", root=root, val_per_class=2, **TINY)
    return (sizes(study), study.set("test").labels.tolist()), (IMAGENET, [3, 2, 1, 0])


def imagenet_with_its_devkit(folder):
    root = _train(folder / "imagenet")
    many(root / "val", [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)], 1000)
    data = folder / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("4\n3\n1\n2\n")
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.zeros((5, 1), dtype=kinds)
    for k, row in enumerate(synsets[:, 0]):  # the last one is no leaf: an animal
        row["ILSVRC2012_ID"], row["words"], row["num_children"] = k + 1.0, "x", 4.0 * (k == 4)
        row["WNID"] = WNIDS[3 - k] if k < 4 else "n00015388"
    savemat(data / "meta.mat", {"synsets": synsets})
    devkit = folder / "ILSVRC2012_devkit_t12"
    study = load_study("imagenet", root=root, devkit=devkit, val_per_class=2, **TINY)
    return (sizes(study), study.set("test").labels.tolist()), (IMAGENET, [0, 1, 3, 2])


def imagenet_and_its_shifted_sets(folder):
    root = _train(folder)
    names = {
        "val": [f"{w}/ILSVRC2012_val_{k:08d}.JPEG" for k, w in enumerate(WNIDS)],
        "sketch": [f"{w}/sketch_{k}.JPEG" for k, w in enumerate(WNIDS)],
        "imagenet-r": [f"{w}/art_{k}.jpg" for k, w in enumerate(WNIDS[:2])],
        "imagenet-a": [f"{w}/0.001_fox _ squirrel_{k}.jpg" for k, w in enumerate(WNIDS[1:3])],
        "imagenetv2-matched-frequency-format-val": [f"{k}/{k:040x}.jpeg" for k in range(4)],
        "stylized": [f"{w}/ILSVRC2012_val_{k:08d}.png" for k, w in enumerate(WNIDS)],
        "C/fog/3": [f"{w}/ILSVRC2012_val_{k:08d}.JPEG" for k, w in enumerate(WNIDS)],
    }
    for k, (place, files) in enumerate(names.items()):
        many(root / place, files, 1000 * (k + 1))
    for place in ("imagenet-r", "imagenet-a"):
        (root / place / "README.txt").write_text("Classes:\n")
    ood = {"imagenet-sketch": "sketch", "imagenet-r": "imagenet-r", "imagenet-a": "imagenet-a"}
    ood["imagenet-v2"] = "imagenetv2-matched-frequency-format-val"
    ood["stylized-imagenet"] = "stylized"
    options = {"corruptions": "C", "corruption_names": ["fog"], "corruption_severities": [3]}
    study = load_study("imagenet", root=root, val_per_class=2, ood=ood, **options, **TINY)
    expected = {**IMAGENET, "imagenet-sketch": 4, "imagenet-r": 2, "imagenet-a": 2}
    expected |= {"imagenet-v2": 4, "stylized-imagenet": 4, "fog-3": 4}
    found = (sizes(study), study.set("imagenet-v2").labels.tolist())
    return found, (expected, [0, 1, 2, 3])


def trials_of_people(folder):
    for who in ("subject-01", "subject-02"):
        write_trials(folder, "sketch", who, np.ones(32, bool))
    write_trials(folder, "sketch", "resnet50", np.zeros(32, bool), human=False)
    found = modelvshuman.read_trials(folder)
    people = found[found["human"]]
    return (len(found), float(people["correct"].mean())), (96, 1.0)


def stimuli_of_people(folder):
    place = folder / "sketch/dnn/session-1"
    many(place, [f"{k:04d}_ske_dnn_0_{c}_00_{c}-{k}.png" for k, c in enumerate(("cat", "dog"))])
    return len(modelvshuman.read_images(folder / "sketch", "sketch")), 2


def generic_object_decoding(folder):
    for k in range(1, 4):
        write(folder / f"Subject{k}.h5")
    pictures(folder / "shown").rename(folder / "images")
    (folder / "images/image_training_id.csv").write_text("1518878.005958,n01518878_5958.JPEG\n")
    study = load_study(folder, subject="Subject2")
    return (list(study.subjects), len(study.subject().stimuli)), (["Subject2"], 4)


def deep_image_reconstruction(folder):
    pictures(folder / "images")
    for who in ("sub-01", "sub-02", "sub-03"):
        stem = f"{who}_perception"
        write_part(folder / f"{stem}NaturalImageTraining_original_VC.h5", NUMBERS[:3] * 2, 1)
        write_part(folder / f"{stem}NaturalImageTest_original_VC.h5", NUMBERS[3:] * 3, 2)
        write_part(folder / f"{stem}ArtificialImage_original_VC.h5", NUMBERS[:1], 9)
        write_part(folder / f"{stem}LetterImage_original_VC.h5", NUMBERS[:1], 9)
        write_part(folder / f"{who}_imagery_original_VC.h5", NUMBERS[3:], 9)
    subjects = load_study(folder, val=0.34).subjects
    found = {n: {k: len(v) for k, v in s.splits.items()} for n, s in subjects.items()}
    parts = {"train": 2, "val": 1, "test": 1}
    return found, {who: parts for who in ("sub-01", "sub-02", "sub-03")}


def natural_scenes(folder):
    subject = load_study(make_root(folder), subject="subj01").subject()
    return (subject.name, len(subject.stimuli), subject.atlas.mesh), ("subj01", 10, "fsaverage")


def algonauts_2023(folder):
    root = folder / "algonauts_2023_challenge_data"
    for name in ("subj01", "subj02"):
        algonauts.write_subject(root / name, make_subject(), test_rows=np.arange(20, 24))
        (root / name / "bmfl_lab.json").unlink()
    subject = algonauts.read_subject(root / "subj02", enforce_counts=False)  # few vertices
    splits = {k: len(v) for k, v in subject.splits.items() if k == "test"}
    return (subject.name, len(subject.stimuli), splits), ("subj02", 24, {"test": 4})


def natural_object_dataset(folder):
    root = folder / "ds004496"
    nod_example.write_fake_nod(root, (1, 10), runs=2, trials=6, images_only=[12])
    (root / "dataset_description.json").write_text("{}")
    (root / "participants.tsv").write_text("participant_id\nsub-01\n")
    study = load_study("nod", root=root, subject=10)
    return (study.subject().name, len(study.subject().stimuli)), ("sub-10", 12)


def things_eeg_2(folder):
    names = ["00001_aircraft/aircraft_06s.jpg", "00002_ant/ant_11s.jpg"]
    many(folder / "image_set/test_images", names)
    many(folder / "image_set/training_images", ["00001_aardvark/aardvark_01b.jpg"], 10)
    listed = {f"{part}_img_files": [n.split("/")[1] for n in names] for part in ("test", "train")}
    concepts = {"test_img_concepts": [n.split("/")[0] for n in names]}
    np.save(folder / "image_set/image_metadata.npy", {**listed, **concepts})
    place = folder / "eeg_dataset/preprocessed_data/sub-01"
    place.mkdir(parents=True)
    data = {"preprocessed_eeg_data": np.zeros((2, 80, 17, 100)), "times": np.linspace(-0.2, 1, 100)}
    data["ch_names"] = [f"O{i}" for i in range(17)]
    with open(place / "preprocessed_eeg_test.npy", "wb") as stream:  # a bare pickle, as distributed
        pickle.dump(data, stream, protocol=4)
    eeg, shown = read_with_images(place)
    return (eeg.data.shape, list(shown.ids)), ((2, 80, 17, 100), ["aircraft_06s", "ant_11s"])


def own_responses(folder):
    images, shown = folder / "images", folder / "shown"
    many(images, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)])
    many(shown, [f"{i}.png" for i in range(20)], 100)
    values = np.random.default_rng(0).standard_normal((20, 9)).astype(np.float32)
    np.savez(folder / "betas.npz", responses=values, ids=[f"{i}.png" for i in range(20)])
    options = {"responses": folder / "betas.npz", "images": shown, "space": "voxels"}
    study = load_study(images, subject="file", **options)
    return (len(study.subject().stimuli), study.subject().n_vertices), (20, 9)


LAYOUTS = {
    f.__name__: f
    for f in (
        *(class_folders, class_folders_of_roboflow, one_level_of_classes),
        *(pacs, office_home, domainnet),
        *(imagenet_of_kaggle, imagenet_with_its_devkit, imagenet_and_its_shifted_sets),
        *(trials_of_people, stimuli_of_people),
        *(generic_object_decoding, deep_image_reconstruction, natural_scenes, algonauts_2023),
        *(natural_object_dataset, things_eeg_2, own_responses),
    )
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_as_it_is_distributed(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    nod_example.clear_caches()
    found, expected = LAYOUTS[layout](folder)
    assert found == expected
