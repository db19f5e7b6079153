"""The remedies of `bmfl_lab.data` about studies, subjects, stimuli, splits and atlases, each followed."""

import ast
import functools
import re
import shutil
import tempfile

import numpy as np
from algonauts_example import NUMBERS, make_subject
from following import follows
from pictures import write

from bmfl_lab import load_study
from bmfl_lab.data import Study, algonauts, register_reader
from bmfl_lab.data import study as study_module
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.simulate import simulate_eeg, simulate_other
from bmfl_lab.data.splits import (
    STIM_INFO,
    check_leakage,
    leave_one_session_out,
    read_shared_ids,
    split_by_id,
)
from bmfl_lab.data.stimuli import StimulusSet, from_arrays
from bmfl_lab.data.study import check_study
from bmfl_lab.data.vertices import control_vertices

IDS = ["a", "b", "c", "d", "e"]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
UNLABELLED = np.full(5, -1)
VALUES = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
SIDE = np.repeat([0, 1], 3).astype(np.int8)
ATLAS = Atlas(SIDE, {"V1": np.arange(6) % 3 == 0, "V2": np.zeros(6, bool)})
STIMULI = from_arrays("own", IMAGES, IDS, UNLABELLED)
SMALL = {"n_encoder": 12, "n_encoder_val": 8, "n_encoder_test": 8}
SIZES = {**SMALL, "n_train": 8, "n_val": 8, "n_test": 8, "n_ood": 8}


@functools.cache
def written_person():
    """Return a folder, deleted at the end, that holds a subject in the layout of Algonauts 2023."""
    folder = tempfile.TemporaryDirectory()
    algonauts.write_subject(f"{folder.name}/own", make_subject(10, 30, 30, NUMBERS[:10]))
    return folder


def person(place):
    """Write a subject in the layout of Algonauts 2023."""
    return shutil.copytree(f"{written_person().name}/own", place)


def class_images(root, sets=("train", "val", "test")):
    """Write one image per class in each set of a study of class folders."""
    for k, name in enumerate(sets):
        for j, label in enumerate(("bird", "cat")):
            write(root / name / label / "0.png", 10 * k + j)
    return root


# --- a study and its file ---


@follows(("data/study.py", "correct them in the study file or where load_study is called"))
def test_an_image_size_of_0(folder, env):
    class_images(folder / "images")
    file = folder / "own.yaml"
    file.write_text("study: folder\nroot: images\nimage_size: 0\n")
    yield lambda: load_study(file)
    file.write_text(file.read_text().replace("image_size: 0", "image_size: 56"))


@follows(
    ("data/study.py", "correct the values where load_study is called, or in the study file"),
    ("data/study.py", "choose one of them"),
)
def test_options_of_another_type(folder, env):
    class_images(folder)
    options = {"verify": "often"}
    yield lambda: load_study(folder, **options)
    options["verify"] = True
    load_study(folder, **options)
    options["skip_broken"] = "some"
    yield lambda: load_study(folder, **options)
    options["skip_broken"] = True


@follows(
    (
        "data/study.py",
        "add the line 'subject: demo' to the study file, or subject='demo' to load_study (lends "
        "the simulated subject of the demo), or give the folder of a subject there",
    )
)
def test_a_study_without_a_subject(folder, env):
    class_images(folder / "images")
    person(folder / "own")
    file = folder / "own.yaml"
    file.write_text("study: folder\nroot: images\n")
    remedy = yield lambda: load_study(file).subject()
    key, name = re.search(r"the line '(\w+): (\w+)'", remedy).groups()
    assert name in study_module.READERS
    file.write_text(f"study: folder\nroot: images\n{key}: {folder / 'own'}\n")


@follows(("data/study.py", "add the set, or take the name out of `ood`"))
def test_an_out_of_distribution_set_that_is_not_there(folder, env):
    sets = {"train": STIMULI}
    yield lambda: Study("own", "own images", sets, ood=("drawings",))
    sets["drawings"] = from_arrays("drawings", 255 - IMAGES, IDS, UNLABELLED)


@follows(("data/study.py", "choose another name"))
def test_a_name_of_a_reader_that_is_taken(folder, env):
    env.setattr(study_module, "READERS", dict(study_module.READERS))
    names = ["planted"]
    yield lambda: register_reader(names[-1], load_study)
    names.append("own")


@follows(
    ("data/study.py", "correct root in the study file; a relative one starts at the file"),
    ("data/study.py", "write this file, see load_study, and give its path"),
)
def test_a_study_that_is_checked_before_it_is_read(folder, env):
    class_images(folder / "images")
    file = folder / "own.yaml"
    file.write_text("study: folder\nroot: elsewhere/images\n")
    yield lambda: check_study(str(file))
    file.write_text("study: folder\nroot: images\n")
    check_study(str(file))
    names = ["domains"]
    yield lambda: check_study(names[-1])
    file.write_text("study: domains\nroot: images\ntrain: train\n")
    names.append(str(file))


@follows(
    ("data/study.py", "write it, for example with the line 'study: planted', see load_study"),
    ("data/study.py", "mend the line"),
)
def test_a_study_file_that_is_missing_or_no_json(folder, env):
    file = folder / "own.yaml"
    remedy = yield lambda: load_study(file, **SIZES)
    file.write_text(re.search(r"the line '(.*?)'", remedy)[1])
    load_study(file, **SIZES)
    file = folder / "own.json"
    class_images(folder / "images")
    file.write_text('{"study": "folder", "root": "images",}')
    yield lambda: load_study(file)
    file.write_text('{"study": "folder", "root": "images"}')


@follows(
    ("data/study.py", "pass {}=..."),
    ("data/study.py", "write its path, or leave root out"),
    ("data/study.py", "give the folder that holds {}"),
)
def test_a_root_that_is_missing_or_wrong(folder, env):
    person(folder / "people" / "own")
    (folder / "people" / "empty").mkdir()
    options = {}
    remedy = yield lambda: load_study("algonauts", **options)
    options[re.search(r"pass (\w+)=", remedy)[1]] = folder / "people" / "own"
    load_study("algonauts", **options)
    options["root"] = 7
    yield lambda: load_study("algonauts", **options)
    options["root"] = folder / "people" / "empty"
    yield lambda: load_study("algonauts", **options)
    options["root"] = folder / "people"


@follows(
    ("data/study.py", "pass {}=..."),
    ("data/study.py", "give a folder in one of these layouts: {}"),
    ("data/study.py", "give as subject the name of its reader, or leave {} out"),
    ("data/study.py", "write the path, or leave {} out"),
    ("data/study.py", "{} All options: {}"),
)
def test_subjects_from_another_place(folder, env):
    class_images(folder / "images")
    options = {"subject": "algonauts"}
    remedy = yield lambda: load_study(folder / "images", **options)
    options[re.search(r"pass (\w+)=", remedy)[1]] = person(folder / "people" / "own")
    load_study(folder / "images", **options)
    options = {"subject": folder / "images" / "train"}
    remedy = yield lambda: load_study(folder / "images", **options)
    assert "algonauts (" in remedy
    options["subject"] = person(folder / "own")
    load_study(folder / "images", **options)
    options["subject_root"] = folder
    remedy = yield lambda: load_study(folder / "images", **options)
    options[re.search(r"give as (\w+)", remedy)[1]] = "algonauts"
    load_study(folder / "images", **options)
    options["subject_root"] = 7
    remedy = yield lambda: load_study(folder / "images", **options)
    options[re.search(r"leave (\w+) out", remedy)[1]] = folder
    load_study(folder / "images", **options)
    options["nan_polici"] = "drop"
    remedy = yield lambda: load_study(folder / "images", **options)
    assert "nan_policy" in remedy.partition("All options: ")[2].split(", ")
    options[re.search(r"did you mean '(\w+)'", remedy)[1]] = options.pop("nan_polici")


@follows(("data/study.py", "add subject: file, which takes it"))
def test_responses_without_a_reader(folder, env):
    class_images(folder / "images")
    ids = [f"{i}.png" for i in range(20)]
    for i, name in enumerate(ids):
        write(folder / "shown" / name, 100 + i)
    values = np.random.default_rng(0).standard_normal((len(ids), 7)).astype(np.float32)
    np.savez(folder / "mine.npz", responses=values, ids=ids)
    options = {"responses": folder / "mine.npz", "images": folder / "shown"}
    remedy = yield lambda: load_study(folder / "images", space="voxels", **options)
    name, value = re.search(r"add (\w+): (\w+)", remedy).groups()
    options[name] = value


# --- subjects ---


@follows(
    ("data/responses.py", "transpose the array"),
    ("data/responses.py", "use the images and masks that belong to these responses"),
    ("data/responses.py", "give one value per {}"),
    ("data/responses.py", "give one value per {}"),
    ("data/responses.py", "make the splits from these stimuli"),
    ("data/responses.py", "assign each stimulus to one split"),
)
def test_arrays_of_a_subject_that_do_not_fit(folder, env):
    given = {"responses": VALUES.T, "splits": {}}

    def call():
        return Subject("own", STIMULI, atlas=ATLAS, **given)

    yield call
    given["responses"] = given["responses"].T
    call()
    given["responses"] = VALUES[:, :4]
    yield call
    given["responses"] = VALUES
    sizes = {"vertex": 6, "stimulus": 5}
    given["noise_ceiling"] = np.ones(5)
    remedy = yield call
    given["noise_ceiling"] = np.ones(sizes[remedy.split()[-1]])
    given["sessions"] = np.zeros(6, int)
    remedy = yield call
    given["sessions"] = np.zeros(sizes[remedy.split()[-1]], int)
    given["splits"] = {"train": np.arange(6)}
    yield call
    given["splits"] = {"train": np.arange(len(STIMULI)), "test": np.arange(2)}
    yield call
    given["splits"] = {"train": np.arange(2, len(STIMULI)), "test": np.arange(2)}


@follows(
    ("data/responses.py", "choose one of them"),
    ("data/responses.py", "give the subject splits, see split_by_id"),
    (
        "data/responses.py",
        "judge measured or simulated responses; predictions go straight into a fusion",
    ),
)
def test_a_split_that_a_subject_lacks(folder, env):
    measured = Subject("own", STIMULI, VALUES, ATLAS, {"test": np.arange(5)})
    names = ["train"]
    yield lambda: measured.rows(names[-1])
    names.append("test")
    people = [Subject("own", STIMULI, VALUES, ATLAS, {})]
    yield lambda: people[-1].rows("train")
    people.append(Subject("own", STIMULI, VALUES, ATLAS, split_by_id(STIMULI.ids)[0]))
    people.append(Subject("own", STIMULI, VALUES, ATLAS, {}, kind="predicted"))
    yield lambda: people[-1].rows("test")
    people.append(measured)


@follows(
    ("data/responses.py", "choose one of them"),
    ("data/responses.py", "pass nan_policy='drop' to leave these vertices out"),
    ("data/responses.py", "download the responses again"),
)
def test_responses_that_are_not_finite(folder, env):
    own = person(folder / "own")
    (own / "bmfl_lab.json").unlink()
    paths = [own / f"training_split/training_fmri/{s}_training_fmri.npy" for s in ("lh", "rh")]
    whole = [np.load(path) for path in paths]
    options = {"nan_policy": "mean"}
    yield lambda: algonauts.read_subject(own, **options)
    options["nan_policy"] = "refuse"
    algonauts.read_subject(own, **options)
    values = whole[0].copy()
    values[3, 2] = np.nan
    np.save(paths[0], values)
    remedy = yield lambda: algonauts.read_subject(own, **options)
    options.update([re.search(r"pass (\w+)='(\w+)'", remedy).groups()])
    algonauts.read_subject(own, **options)
    for path, values in zip(paths, whole):
        np.save(path, np.full_like(values, np.nan))
    yield lambda: algonauts.read_subject(own, **options)
    for path, values in zip(paths, whole):
        np.save(path, values)


# --- atlases and vertices ---


@follows(
    ("data/atlas.py", "concatenate the left hemisphere first"),
    ("data/atlas.py", "use masks of the same space as the responses"),
    ("data/atlas.py", "give one value per vertex of this atlas"),
)
def test_an_atlas_whose_arrays_do_not_fit(folder, env):
    parts, rois = [np.ones(3, np.int8), np.zeros(2, np.int8)], {}
    yield lambda: Atlas(np.concatenate(parts), rois)
    parts.sort(key=lambda part: part[0])
    rois["V1"] = np.ones(9, bool)
    yield lambda: Atlas(np.concatenate(parts), rois)
    rois["V1"] = np.ones(5, bool)
    masks = [np.ones(4, bool)]
    atlas = Atlas(np.concatenate(parts), rois)
    yield lambda: atlas.subset(masks[-1])
    masks.append(np.ones(atlas.n_vertices, bool))


@follows(
    ("data/atlas.py", "name one, or 'all'"),
    ("data/atlas.py", "choose one of {}"),
    (
        "data/atlas.py",
        "choose 'all', which is every vertex, or give an atlas with ROIs",
    ),
)
def test_a_region_without_vertices(folder, env):
    names = [[]]
    remedy = yield lambda: ATLAS.select(names[-1])
    names.append([re.search(r"or '(\w+)'", remedy)[1]])
    ATLAS.select(names[-1])
    names.append(["V2"])
    remedy = yield lambda: ATLAS.select(names[-1])
    names.append(remedy.removeprefix("choose one of ").split(", "))
    bare = Atlas(SIDE, {})
    names.append("LVC")
    remedy = yield lambda: bare.select(names[-1])
    names.append(re.search(r"choose '(\w+)'", remedy)[1])


@follows(
    ("data/vertices.py", "give one value per vertex of this atlas"),
    ("data/vertices.py", "choose a region that is neither empty nor the whole cortex"),
    ("data/vertices.py", "choose a smaller region"),
    ("data/vertices.py", "give the noise ceiling of the subject of this atlas"),
)
def test_a_region_without_vertices_to_compare_with(folder, env):
    draw = np.random.default_rng(0)
    masks = [np.arange(4) == 0]
    yield lambda: control_vertices(ATLAS, masks[-1], draw)
    masks.append(np.arange(ATLAS.n_vertices) == 0)
    control_vertices(ATLAS, masks[-1], draw)
    masks.append(ATLAS.select("all"))
    yield lambda: control_vertices(ATLAS, masks[-1], draw)
    masks.append(ATLAS.select("V1"))
    control_vertices(ATLAS, masks[-1], draw)
    masks.append(SIDE == 0)
    yield lambda: control_vertices(ATLAS, masks[-1], draw)
    masks.append(ATLAS.select("V1"))
    ceilings = [np.ones(9)]
    yield lambda: control_vertices(ATLAS, masks[-1], draw, ceiling=ceilings[-1])
    ceilings.append(np.ones(ATLAS.n_vertices))


# --- stimuli ---


@follows(
    ("data/stimuli.py", "give one label per image, -1 for an unlabelled one"),
    ("data/stimuli.py", "replace each label by its class index"),
    ("data/stimuli.py", "make the ids unique"),
    ("data/stimuli.py", "convert them to 8-bit RGB, one image per id"),
)
def test_images_ids_and_labels_that_do_not_fit(folder, env):
    names = ("bird", "cat")
    given = {"images": IMAGES, "ids": list(IDS), "labels": [0, 1, 1]}

    def call():
        return from_arrays("own", class_names=names, **given)

    remedy = yield call
    given["labels"] = [0, 1, 1, *[int(re.search(r"-\d", remedy)[0])] * 2]
    call()
    given["labels"] = [1, 2, 2, 1, 1]
    yield call
    labels = [names[number - 1] for number in given["labels"]]
    given["labels"] = [names.index(label) for label in labels]
    given["ids"][1] = "a"
    yield call
    given["ids"] = [f"{identifier}-{i}" for i, identifier in enumerate(given["ids"])]
    given["images"] = IMAGES / 255
    yield call
    given["images"] = np.rint(given["images"] * 255).astype(np.uint8)


@follows(
    ("data/stimuli.py", "convert it to 8-bit RGB"),
    ("data/stimuli.py", "give ids of the set, such as {}"),
)
def test_images_that_a_set_cannot_give(folder, env):
    pictures = list(IMAGES[..., 0])
    own = StimulusSet("own", np.array(IDS), pictures.__getitem__, str, UNLABELLED)
    yield lambda: own.image(2)
    pictures[2] = np.repeat(pictures[2][..., None], 3, axis=2)
    ids = [["z"]]
    remedy = yield lambda: own.index_of(ids[-1])
    ids.append(ast.literal_eval(re.search(r"such as (\[.*\])", remedy)[1]))


# --- splits ---


@follows(
    ("data/splits.py", "lower them"),
    ("data/splits.py", "hold fewer out"),
    ("data/splits.py", "use ids of the form 'nsd-00013' (0-based)"),
)
def test_shares_and_held_out_ids(folder, env):
    ids = [f"nsd-{i:05d}" for i in range(20)]
    options = {"val": 0.6, "test": 0.6}
    yield lambda: split_by_id(ids, **options)
    options.update(val=0.3, test=0.3)
    split_by_id(ids, **options)
    options["held_out"] = list(ids)
    yield lambda: split_by_id(ids, **options)
    options["held_out"] = ids[:5]
    split_by_id(ids, **options)
    options["held_out"] = ["13"]
    remedy = yield lambda: split_by_id(ids, **options)
    options["held_out"] = [re.search(r"form '(nsd-\d+)'", remedy)[1]]


@follows(("data/splits.py", "use k-fold cross-validation, or give the ids of the same rows"))
def test_ids_of_other_rows_than_the_sessions(folder, env):
    ids = [IDS]
    yield lambda: leave_one_session_out([1, 1, 2, 2], ids[-1])
    ids.append(IDS[:4])


@follows(
    ("data/splits.py", "split again by stimulus id"),
    ("data/splits.py", "leave only one copy of each of these images"),
)
def test_sets_that_share_images(folder, env):
    rows = {"train": [0, 1, 2], "test": [2, 3, 4]}
    everything = [STIMULI]

    def call():
        return check_leakage({k: everything[-1].subset(v) for k, v in rows.items()})

    yield call
    rows.update(split_by_id(STIMULI.ids, val=0.0, test=0.4)[0])
    call()
    images = IMAGES.copy()
    images[rows["test"][0]] = images[rows["train"][0]]
    everything.append(from_arrays("own", images, IDS, UNLABELLED))
    yield call
    rows["test"] = rows["test"][1:]


@follows(
    ("data/splits.py", "check the path"),
    ("data/splits.py", "download the file again from NSD"),
    ("data/splits.py", "use NSD's own file"),
    ("data/splits.py", "use NSD's own file, downloaded again"),
)
def test_the_table_of_nsd(folder, env):
    path, right = folder / STIM_INFO, "nsdId,shared1000\n13,True\n14,False\n"
    yield lambda: read_shared_ids(path)
    path.write_text(right)
    read_shared_ids(path)
    path.write_text(right.replace("13", "1e3"))
    yield lambda: read_shared_ids(path)
    path.write_text(right)
    path.write_text(right.replace("True", "False"))
    yield lambda: read_shared_ids(path)
    path.write_text(right)
    read_shared_ids(path)
    path.write_text(right.replace("shared1000", "shared"))
    yield lambda: read_shared_ids(path)
    path.write_text(right)


# --- simulations ---


@follows(
    ("data/simulate.py", "ask for more images"),
    ("data/simulate.py", "choose for example share=0.7"),
    (
        "data/simulate.py",
        "give a simulated subject, such as that of load_study('planted'), or compare the measured "
        "subjects of the study with each other",
    ),
)
def test_a_simulated_subject(folder, env):
    sizes = {**SIZES, "n_encoder": 2}
    yield lambda: load_study("planted", **sizes)
    sizes["n_encoder"] = SMALL["n_encoder"]
    people, shares = [load_study("planted", **sizes).subject()], [70.0]
    remedy = yield lambda: simulate_other(people[-1], share=shares[-1])
    shares.append(float(re.search(r"share=(0\.\d)", remedy)[1]))
    simulate_other(people[-1], share=shares[-1])
    people.append(Subject("own", STIMULI, VALUES, ATLAS, {}))
    remedy = yield lambda: simulate_other(people[-1], share=shares[-1])
    people.append(load_study(re.search(r"load_study\('(\w+)'\)", remedy)[1], **SIZES).subject())


@follows(
    ("data/simulate.py", "name the same sources in both"),
    ("data/simulate.py", "give one id per row"),
)
def test_sources_of_simulated_eeg(folder, env):
    latencies, ids = {"V1": 0.1, "V2": 0.12}, [IDS]
    yield lambda: simulate_eeg({"V1": VALUES}, latencies, ids[-1])
    del latencies["V2"]
    ids.append(IDS[:3])
    yield lambda: simulate_eeg({"V1": VALUES}, latencies, ids[-1])
    ids.append([f"stimulus {i}" for i in range(len(VALUES))])
