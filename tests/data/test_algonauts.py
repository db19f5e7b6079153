"""Folders in the Algonauts 2023 layout: written, read back, and refused when damaged."""

import dataclasses
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from algonauts_example import LEFT, NUMBERS, RIGHT, N, make_subject

from bmfl_lab import load_study
from bmfl_lab.data import algonauts
from bmfl_lab.data.atlas import ALGONAUTS_ROIS
from bmfl_lab.data.pickles import write_mapping
from bmfl_lab.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def subject():
    return make_subject()


@pytest.fixture(scope="module")
def original(tmp_path_factory, subject):
    return algonauts.write_subject(tmp_path_factory.mktemp("algonauts") / "own", subject)


@pytest.fixture
def folder(tmp_path, original):
    copied = shutil.copytree(original, tmp_path / "own")
    (
        copied / "bmfl_lab.json"
    ).unlink()  # as a folder of the challenge: nothing to compare the files with
    return copied


def fmri(folder, side="lh"):
    return folder / "training_split" / "training_fmri" / f"{side}_training_fmri.npy"


def test_what_was_written_is_read_back(original, subject):
    back = algonauts.read_subject(original)
    np.testing.assert_array_equal(back.responses, subject.responses)
    np.testing.assert_array_equal(back.atlas.surface_index, subject.atlas.surface_index)
    np.testing.assert_array_equal(back.atlas.hemisphere, subject.atlas.hemisphere)
    assert set(back.atlas.rois) == set(subject.atlas.rois) and back.atlas.mesh == "fsaverage"
    for name, mask in subject.atlas.rois.items():
        np.testing.assert_array_equal(back.atlas.rois[name], mask)
    assert back.info["absent_rois"] == ["mTL-bodies"] and "mTL-bodies" in back.atlas.absent
    np.testing.assert_array_equal(back.noise_ceiling, subject.noise_ceiling)
    assert list(back.stimuli.ids) == list(subject.stimuli.ids)
    np.testing.assert_array_equal(back.stimuli.image(5), subject.stimuli.image(5))
    assert back.info["constant_vertices"] == {"left": 0, "right": 0}


def test_any_study_is_written_and_read_back(tmp_path):
    """The planted study: areas under other names that overlap here, vertices in another order, on fsaverage5."""
    made = load_study(
        "planted", n_encoder=12, n_encoder_val=4, n_encoder_test=4, n_train=4, n_val=4, n_test=4
    ).subject()
    atlas = made.atlas
    rois = {**atlas.rois, "both": atlas.rois["V1"] | atlas.rois["V2"]}
    made = dataclasses.replace(made, atlas=dataclasses.replace(atlas, rois=rois))
    back = algonauts.read_subject(algonauts.write_subject(tmp_path / "own", made))
    key = np.asarray(atlas.hemisphere, np.int64) * 200_000 + np.asarray(atlas.surface_index)
    order = np.argsort(key)
    assert not np.array_equal(order, np.arange(len(order))) and back.simulated
    np.testing.assert_array_equal(back.atlas.surface_index, np.asarray(atlas.surface_index)[order])
    np.testing.assert_array_equal(back.responses, made.responses[:, order])
    np.testing.assert_array_equal(back.noise_ceiling, made.noise_ceiling[order])
    assert set(back.atlas.present) == set(made.atlas.present)
    for name in made.atlas.present:
        np.testing.assert_array_equal(back.atlas.rois[name], np.asarray(rois[name])[order])
    doubled = dataclasses.replace(atlas, surface_index=np.asarray(atlas.surface_index) // 10_000)
    with pytest.raises(
        DataError, match=r"different surface indices from 0 to 163841 in lh; got \d+ repeated"
    ):
        algonauts.write_subject(tmp_path / "twice", dataclasses.replace(made, atlas=doubled))


def test_layout_is_the_published_one(original):
    names = {str(p.relative_to(original)) for p in original.rglob("*") if p.is_file()}
    assert f"training_split/training_images/train-0001_nsd-{NUMBERS[0]:05d}.png" in names
    assert "training_split/training_fmri/lh_training_fmri.npy" in names
    for kind in ALGONAUTS_ROIS:
        assert f"roi_masks/mapping_{kind}.npy" in names
        assert {
            f"roi_masks/{s}.{kind}_{p}_space.npy"
            for s in ("lh", "rh")
            for p in ("challenge", "fsaverage")
        } <= names
    assert np.load(original / "roi_masks/lh.all-vertices_fsaverage_space.npy").shape == (163_842,)


def test_unpadded_names_pair_by_number_not_by_order(folder, subject):
    images = folder / "training_split" / "training_images"
    for path in list(images.iterdir()):
        path.rename(images / re.sub(r"train-0*", "train-", path.name))
    back = algonauts.read_subject(folder)
    assert sorted(p.name for p in images.iterdir())[0].startswith("train-10")
    assert list(back.stimuli.ids) == list(subject.stimuli.ids)


def test_cache_maps_the_responses(folder, subject, tmp_path):
    back = algonauts.read_subject(folder, cache=tmp_path / "cache" / "joined.npy")
    assert isinstance(back.responses, np.memmap)
    np.testing.assert_array_equal(back.responses, subject.responses)


def test_shared_images_form_the_test_split(folder, subject, tmp_path):
    shared = [str(i) for i in subject.stimuli.ids[[3, 7, 20]]]
    back = algonauts.read_subject(folder, shared_ids=[*shared, "nsd-73001"])
    assert (
        back.splits["test"].tolist() == [3, 7, 20]
        and back.info["split"]["method"] == "held-out ids"
    )
    table = tmp_path / "nsd_stim_info_merged.csv"
    rows = [f"{i},{i},{f'nsd-{i:05d}' in shared}" for i in sorted(NUMBERS)]
    table.write_text("cocoId,nsdId,shared1000\n" + "\n".join(rows))
    assert algonauts.read_subject(folder, stim_info=table).splits["test"].tolist() == [3, 7, 20]
    assert algonauts.read_subject(folder).splits["test"].tolist() == [
        3,
        7,
        20,
    ]  # found beside the folder
    assert algonauts.read_subject(folder, shared_ids=[shared[0]]).splits["test"].tolist() == [3]
    with pytest.raises(DataError, match="held-out ids among the stimuli"):
        algonauts.read_subject(folder, shared_ids=["nsd-73001"])


def test_organisers_test_split(tmp_path, subject):
    made = algonauts.write_subject(tmp_path / "own", subject, test_rows=np.arange(20, 24))
    back = algonauts.read_subject(made)
    assert back.splits["test"].tolist() == [20, 21, 22, 23]
    np.testing.assert_array_equal(back.responses, subject.responses)
    assert len(algonauts.read_test_images(made)) == 4


def test_float64_and_fortran_are_converted_with_a_notice(folder, subject):
    np.save(fmri(folder), np.load(fmri(folder)).astype(np.float64))
    np.save(fmri(folder, "rh"), np.asfortranarray(np.load(fmri(folder, "rh"))))
    with pytest.warns(UserWarning, match="converted to float32"):
        back = algonauts.read_subject(folder)
    assert back.responses.dtype == np.float32
    np.testing.assert_array_equal(back.responses, subject.responses)


def change(path, function):
    np.save(path, function(np.load(path)))


def drop_one_image(folder):
    next((folder / "training_split" / "training_images").glob("train-0024*")).unlink()


def drop_a_middle_image(folder):
    next((folder / "training_split" / "training_images").glob("train-0010*")).unlink()


def mask(folder, name):
    return folder / "roi_masks" / name


def rename_label(folder):
    write_mapping(
        mask(folder, "mapping_floc-places.npy"), {0: "Unknown", 1: "PPA", 2: "OPA", 3: "RSC"}
    )


def set_first(value):
    def function(a):
        a = a.copy()
        a.flat[0] = value
        return a

    return function


DAMAGE = {
    "fewer images than rows": (drop_one_image, r"23 rows .* one for each image; got .*24 rows"),
    "gap in the numbers": (drop_a_middle_image, "without gaps"),
    "one-dimensional": (lambda f: change(fmri(f), lambda a: a[:, 0]), "float32 responses of shape"),
    "objects": (lambda f: np.save(fmri(f), np.array([[{}]])), "pickled Python objects"),
    "NaN": (lambda f: change(fmri(f), set_first(np.nan)), "in 1 left and 0 right vertices"),
    "infinity": (
        lambda f: change(fmri(f, "rh"), set_first(np.inf)),
        "in 0 left and 1 right vertices",
    ),
    "label without a name": (
        lambda f: write_mapping(mask(f, "mapping_streams.npy"), {0: "Unknown", 1: "early"}),
        r"labels without a name \[2, 3, 4, 5, 6, 7\]",
    ),
    "name without a vertex": (
        lambda f: write_mapping(
            mask(f, "mapping_floc-places.npy"),
            {0: "Unknown", 1: "OPA", 2: "PPA", 3: "RSC", 9: "new"},
        ),
        r"names without a vertex \[9\]",
    ),
    "standard names at other labels": (rename_label, r"standard names at other labels \[1, 2\]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(folder, name):
    damage, match = DAMAGE[name]
    damage(folder)
    with pytest.raises(DataError, match=match):
        algonauts.read_subject(folder)


def test_truncated_and_inflated_files_are_refused(folder):
    raw = fmri(folder).read_bytes()
    fmri(folder).write_bytes(raw[:-4])
    with pytest.raises(DataError, match="truncated or damaged"):
        algonauts.read_subject(folder)
    fmri(folder).write_bytes(
        raw.replace(b"(24, 150)", b"(9999999999, 150)").replace(b"         \n", b"\n", 1)
    )
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bytes of data|damaged header|NumPy array"):
        algonauts.read_subject(folder)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["training_split/training_fmri/rh_training_fmri.npy", "roi_masks/mapping_streams.npy"]
)
def test_a_flipped_bit_in_a_written_folder_is_refused(tmp_path, original, name):
    folder = shutil.copytree(original, tmp_path / "own")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name} in .* as it was written; got another content"):
        algonauts.read_subject(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match="got no such file"):
        algonauts.read_subject(folder)
    (folder / "bmfl_lab.json").write_text('{"simulated": true, "sha256": []}')
    with pytest.raises(DataError, match="file names and checksums in"):
        algonauts.read_subject(folder)


def test_checksums_can_be_left_unread(tmp_path, original, subject):
    folder = shutil.copytree(original, tmp_path / "own")
    change(fmri(folder), lambda a: a + np.float32(1))
    back = algonauts.read_subject(folder, verify=False)
    np.testing.assert_array_equal(
        back.responses[:, :LEFT], subject.responses[:, :LEFT] + np.float32(1)
    )


def test_vertices_with_nan_are_dropped_and_recorded(folder, subject):
    change(fmri(folder), set_first(np.nan))
    change(fmri(folder, "rh"), lambda a: np.where(np.arange(RIGHT) == 5, 2.0, a).astype(np.float32))
    back = algonauts.read_subject(folder, nan_policy="drop")
    np.testing.assert_array_equal(back.responses[:, : LEFT - 1], subject.responses[:, 1:LEFT])
    assert back.info["dropped_vertices"] == {"left": 1, "right": 0}
    assert back.info["constant_vertices"] == {"left": 0, "right": 1}
    assert back.n_vertices == LEFT + RIGHT - 1 and len(back.noise_ceiling) == back.n_vertices
    with pytest.raises(ConfigError, match="nan_policy 'refuse' or 'drop'"):
        algonauts.read_subject(folder, nan_policy="zero")


def test_undefined_ceilings_become_nan_and_are_counted(folder):
    change(folder / "test_split/noise_ceiling/lh_noise_ceiling.npy", set_first(0.0))
    back = algonauts.read_subject(folder)
    assert np.isnan(back.noise_ceiling[0]) and back.info["noise_ceiling"]["undefined_vertices"] == 1
    shutil.rmtree(folder / "test_split")
    assert algonauts.read_subject(folder).noise_ceiling is None


def test_links_out_of_the_folder_need_leave(folder, tmp_path):
    outside = tmp_path / "outside.npy"
    fmri(folder).rename(outside)
    fmri(folder).symlink_to(outside)
    with pytest.raises(DataError, match=r"a link to .*follow_links=True"):
        algonauts.read_subject(folder)
    assert len(algonauts.read_subject(folder, follow_links=True).stimuli) == N


def test_vertices_without_a_surface_have_none_when_read_back(tmp_path, subject):
    bare = dataclasses.replace(
        subject, atlas=dataclasses.replace(subject.atlas, surface_index=None, mesh=None)
    )
    folder = algonauts.write_subject(tmp_path / "own", bare)
    back = algonauts.read_subject(folder)
    assert back.atlas.surface_index is None and back.atlas.mesh is None
    np.testing.assert_array_equal(back.responses, subject.responses)
    np.testing.assert_array_equal(back.atlas.rois["V1v"], subject.atlas.rois["V1v"])
    again = algonauts.read_subject(algonauts.write_subject(tmp_path / "again", back))
    assert again.atlas.surface_index is None
    note = folder / "bmfl_lab.json"
    note.write_text(note.read_text().replace('"surface": false', '"surface": "no"'))
    with pytest.raises(DataError, match="true or false under 'simulated' and 'surface'"):
        algonauts.read_subject(folder)


def test_any_label_but_zero_marks_a_vertex_as_inside(folder, subject):
    change(mask(folder, "lh.all-vertices_fsaverage_space.npy"), lambda a: a * 7)
    change(mask(folder, "rh.all-vertices_fsaverage_space.npy"), lambda a: (-a).astype(np.float32))
    back = algonauts.read_subject(folder)
    np.testing.assert_array_equal(back.atlas.surface_index, subject.atlas.surface_index)
    change(mask(folder, "lh.all-vertices_fsaverage_space.npy"), lambda a: a * 0)
    with pytest.raises(DataError, match="at least one vertex that is not 0"):
        algonauts.read_subject(folder)


def test_one_of_the_eight_without_nsds_table_is_warned_about(folder, monkeypatch):
    monkeypatch.setitem(algonauts.VERTEX_COUNTS, "own", (LEFT, RIGHT))
    monkeypatch.setitem(algonauts.IMAGE_COUNTS, "own", N)
    with pytest.warns(UserWarning, match="to hold out NSD's shared images.*drawn by the seed"):
        back = algonauts.read_subject(folder)
    assert back.info["split"]["method"] == "seeded by id"
