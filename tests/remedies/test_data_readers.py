"""The remedies of the readers of Kamitani's files, THINGS-EEG2 and fsLR 32k, each followed."""

import re
import shutil

import nod_example
import numpy as np
from following import follows
from kamitani_example import (
    NAMES,
    NUMBERS,
    damaged,
    pictures,
    write,
    write_part,
)
from nibabel.cifti2 import BrainModelAxis

from bmfl_lab.data import fslr, kamitani, things_eeg
from bmfl_lab.data.things_eeg import EEG, read_things_eeg, read_with_images

# --- Kamitani's files ---


def changed(path, column, value):
    """Write the example with another value in the first sample."""

    def change(keys, values, data):
        data[0, column] = value
        return keys, values, data

    damaged(path, change)


@follows(
    ("data/kamitani.py", "put the images that were shown into {}"),
    ("data/kamitani.py", "put both files of the subject there, and no other file of it"),
)
def test_a_folder_of_subjects(folder, env):
    root = folder / "god"
    train = write_part(root / "S_train.h5", NUMBERS[:3], 1)
    test = write_part(root / "S_test.h5", NUMBERS[3:], 1)
    remedy = yield lambda: kamitani.load(root)
    pictures(folder / "shown").rename(re.search(r"into (\S+)", remedy)[1])
    kamitani.load(root)
    test.rename(folder / test.name)
    shutil.copy(train, root / "S_train_v2.h5")
    yield lambda: kamitani.load(root)
    (root / "S_train_v2.h5").unlink()
    (folder / test.name).rename(test)


@follows(
    ("data/kamitani.py", "use 0.1"),
    (
        "data/kamitani.py",
        "pass label= the column that numbers the stimuli, one of {}",
    ),
    (
        "data/kamitani.py",
        "leave out these rows, or pass label= another column of {}",
    ),
)
def test_a_share_and_a_label(folder, env):
    path, images, options = folder / "s.h5", pictures(folder / "images"), {"val_share": 1.5}
    write(path)

    def read():
        return kamitani.read_subject(path, images, **options)

    remedy = yield read
    options["val_share"] = float(re.search(r"use (0\.\d)", remedy)[1])
    options["label"] = "VoxelData"
    remedy = yield read
    options["label"] = re.search(r"one of \['(\w+)'\]", remedy)[1]
    read()
    changed(path, 7, 0)
    remedy = yield read
    assert options["label"] in re.search(r"another column of (\[.*\])", remedy)[1]
    damaged(path, lambda keys, values, data: (keys, values, data[1:]))


@follows(
    (
        "data/kamitani.py",
        "give each image one DataType, 1 for training or 2 for test",
    ),
    ("data/kamitani.py", "set VoxelData to 0 for the others"),
)
def test_a_table_of_samples(folder, env):
    path, images = folder / "s.h5", pictures(folder / "images")
    changed(path, 6, 2)
    remedy = yield lambda: kamitani.read_subject(path, images)
    training = int(re.search(r"(\d) for training", remedy)[1])
    changed(path, 6, training)
    kamitani.read_subject(path, images)
    changed(path, 2, np.nan)
    remedy = yield lambda: kamitani.read_subject(path, images)
    key, value = re.search(r"set (\w+) to (\d)", remedy).groups()

    def leave_out(keys, values, data):
        values[keys.index(key), 2] = int(value)
        data[0, 2] = np.nan
        return keys, values, data

    damaged(path, leave_out)


@follows(
    ("data/kamitani.py", "use files of one subject and one brain area"),
    (
        "data/kamitani.py",
        "give it one DataType (1 for training, 2 for test) in the files of the subject, or use a "
        "training file and a test file that belong together",
    ),
)
def test_a_training_and_a_test_file(folder, env):
    images = pictures(folder / "images")
    train = write_part(folder / "S_train.h5", NUMBERS[:3], 1)
    test = write_part(folder / "S_test.h5", NUMBERS[3:], 1, shift=0.5)
    yield lambda: kamitani.read_subject([train, test], images)
    write_part(test, NUMBERS[3:], 1)
    kamitani.read_subject([train, test], images)
    write_part(test, NUMBERS[2:], 1)
    yield lambda: kamitani.read_subject([train, test], images)
    write_part(test, NUMBERS[3:], 1)


@follows(
    ("data/kamitani.py", "list one image per row"),
    ("data/kamitani.py", "average the trials first"),
    (
        "data/kamitani.py",
        "leave out these rows and their images, or the features with such values",
    ),
    ("data/kamitani.py", "use one set of voxels"),
)
def test_plain_arrays(folder, env):
    images = pictures(folder / "images")
    paths = [images / f"{name}.png" for name in NAMES]
    values = np.arange(16.0).reshape(4, 4)
    np.save(folder / "r.npy", values)
    listed, options = [paths[:2]], {}

    def read():
        return kamitani.read_plain(folder / "r.npy", listed[-1], **options)

    yield read
    listed.append([*paths[:3], paths[0]])
    yield read
    np.save(folder / "r.npy", np.stack([values[[0, 3]].mean(0), *values[1:3]]))
    listed.append(paths[:3])
    read()
    np.save(folder / "r.npy", np.where(values == 5, np.nan, values)[:3])
    yield read
    np.save(folder / "r.npy", values[[0, 2]])
    listed.append([paths[0], paths[2]])
    read()
    options |= {"test_responses": folder / "t.npy", "test_images": paths[3:]}
    np.save(folder / "t.npy", values[3:, :3])
    yield read
    np.save(folder / "t.npy", values[3:])


@follows(("data/kamitani.py", "use 0.1"))
def test_the_share_of_validation_of_plain_arrays(folder, env):
    images, share = pictures(folder / "images"), [1.5]
    np.save(folder / "r.npy", np.ones((4, 4)))
    paths = [images / f"{name}.png" for name in NAMES]
    remedy = yield lambda: kamitani.read_plain(folder / "r.npy", paths, val_share=share[-1])
    share.append(float(re.search(r"use (0\.\d)", remedy)[1]))


# --- THINGS-EEG2 ---

CHANNELS = ["O1", "Oz", "P3"]
TIMES = np.linspace(-0.2, 0.8, 10)


def recording(folder, **changes):
    data = np.random.default_rng(0).normal(size=(2, 4, 3, 10))
    content = {"preprocessed_eeg_data": data, "ch_names": CHANNELS, "times": TIMES} | changes
    np.save(folder / "preprocessed_eeg_test.npy", content)
    return folder


def table(folder, names, columns="name\tx\ty\tz"):
    rows = [columns, *(f"{name}\t{k}\t{k + 1}\t{k + 2}" for k, name in enumerate(names))]
    (folder / "electrodes.tsv").write_text("\n".join(rows))


@follows(
    ("data/things_eeg.py", "choose one of them"),
    ("data/things_eeg.py", "use the *preprocessed* EEG of the dataset"),
    ("data/things_eeg.py", "use image_metadata.npy"),
    ("data/things_eeg.py", "use the image list, channels and times of this file"),
    ("data/things_eeg.py", "drop those trials or channels first"),
)
def test_a_recording(folder, env):
    recording(folder)
    options = {"split": "validation"}

    def read():
        return read_things_eeg(folder, **options)

    yield read
    options["split"] = "test"
    np.save(folder / "preprocessed_eeg_test.npy", {"raw_eeg_data": np.zeros(3), "times": TIMES})
    yield read
    recording(folder)
    np.save(folder / "other.npy", {"concepts": ["ant", "bee"]})
    options["metadata"] = folder / "other.npy"
    remedy = yield read
    options["metadata"] = folder / re.search(r"use (\S+\.npy)", remedy)[1]
    np.save(options["metadata"], {"test_img_files": ["ant.jpg", "bee.jpg"]})
    assert list(read().ids) == ["ant", "bee"]
    recording(folder, times=TIMES[:4])
    yield read
    recording(folder)
    data = np.ones((2, 4, 3, 10))
    data[:, 1] = np.nan
    recording(folder, preprocessed_eeg_data=data)
    yield read
    recording(folder, preprocessed_eeg_data=np.delete(data, 1, axis=1))


@follows(
    (
        "data/things_eeg.py",
        "put {} with the columns name, x, y and z beside the recording",
    ),
    (
        "data/things_eeg.py",
        "write a row per sensor with the columns name, x, y and z",
    ),
    ("data/things_eeg.py", "give one row per sensor, in the order of the channels"),
)
def test_positions_of_sensors(folder, env):
    recording(folder)
    remedy = yield lambda: read_things_eeg(folder).layout()
    name, *columns = re.search(
        r"put (\S+) with the columns (\w+), (\w+), (\w+) and (\w+)", remedy
    ).groups()
    assert name == things_eeg.POSITIONS
    table(folder, CHANNELS, "\t".join(columns))
    read_things_eeg(folder).layout()
    table(folder, CHANNELS[:2])
    yield lambda: read_things_eeg(folder)
    table(folder, CHANNELS)
    read_things_eeg(folder)
    data, ids, places = np.zeros((1, 1, 3, 10)), np.array(["a"]), [np.zeros((2, 3))]
    yield lambda: EEG(data, tuple(CHANNELS), TIMES, ids, positions=places[-1])
    places.append(np.zeros((3, 3)))


@follows(
    (
        "data/things_eeg.py",
        "unpack the dataset's image set there, or use read_things_eeg and eeg_stimuli with your "
        "own paths",
    )
)
def test_a_recording_without_its_images(folder, env):
    person = folder / "preprocessed/sub-01"
    person.mkdir(parents=True)
    recording(person)
    remedy = yield lambda: read_with_images(person)
    shown = pictures(folder / "mine")
    reader, images = (
        getattr(things_eeg, n) for n in re.search(r"use (\w+) and (\w+)", remedy).groups()
    )
    assert len(images(reader(person, ids=NAMES[:2]), shown)) == 2
    (folder / "image_set").mkdir()
    shown.rename(folder / "image_set/test_images")
    names = {"test_img_files": [f"{name}.png" for name in NAMES[:2]]}
    np.save(folder / "image_set/image_metadata.npy", names)


# --- fsLR 32k ---


@follows(
    (
        "data/fslr.py",
        "use the file of the cortex (for NOD, the *_beta.dscalar.nii of its derivatives)",
    ),
    ("data/fslr.py", "use the file in fsLR 32k"),
    ("data/fslr.py", "use a .dlabel.nii file"),
)
def test_a_file_of_the_cortex(folder, env):
    cortex, paths = nod_example.cortex(), [folder / "whole.dscalar.nii"]
    whole = nod_example.brain_models(subcortex=True)
    nod_example.write_dscalar(paths[-1], np.zeros((1, len(whole))), whole)
    remedy = yield lambda: fslr.open_cortical_cifti(paths[-1])
    paths.append(folder / re.search(r"\*(_beta\.dscalar\.nii)", remedy)[1])
    nod_example.write_dscalar(paths[-1], np.zeros((1, len(cortex))))
    fslr.open_cortical_cifti(paths[-1])
    sides = [
        BrainModelAxis.from_surface(np.arange(3), 10_242, f"Cortex{s}") for s in ("Left", "Right")
    ]
    nod_example.write_dscalar(folder / "five.dscalar.nii", np.zeros((1, 6)), sides[0] + sides[1])
    paths.append(folder / "five.dscalar.nii")
    yield lambda: fslr.open_cortical_cifti(paths[-1])
    paths.append(paths[1])
    fslr.open_cortical_cifti(paths[-1])
    remedy = yield lambda: fslr.read_dlabel(paths[-1])
    paths.append(folder / f"areas{re.search(r'a (.dlabel.nii) file', remedy)[1]}")
    nod_example.write_dlabel(paths[-1], nod_example.area_masks())


@follows(("data/fslr.py", "use the surface in fsLR 32k"))
def test_a_surface_of_another_mesh(folder, env):
    path = folder / "sub-99.L.inflated.32k_fs_LR.surf.gii"
    env.setitem(fslr.SUBJECT_SURFACES, "fsLR32k/sub-99", folder)
    triangle = np.array([[0, 1, 2]], np.int32)
    path.write_bytes(nod_example.gifti(np.zeros((10_242, 3), np.float32), triangle))
    yield lambda: fslr.load_surface("left", "inflated", "fsLR32k/sub-99")
    path.write_bytes(nod_example.gifti(np.zeros((fslr.N_VERTICES, 3), np.float32), triangle))
