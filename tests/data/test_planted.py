"""The planted study against what was planted."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bmfl_lab.data import load_study, planted
from bmfl_lab.data.planted import RF_SIZE, load
from bmfl_lab.errors import ConfigError

SIZES = {
    "n_encoder": 400,
    "n_encoder_val": 40,
    "n_encoder_test": 200,
    "n_train": 40,
    "n_val": 20,
    "n_test": 40,
    "n_ood": 40,
}


@pytest.fixture(scope="module")
def study():
    return load(seed=3, **SIZES)


@pytest.fixture(scope="module")
def silent():
    return load(seed=3, carries=False, **SIZES)


def pixels(stimuli):
    return np.stack([stimuli.image(i) for i in range(len(stimuli))])


def decoded(responses, labels):
    half = len(labels) // 2
    model = LogisticRegression(C=1.0, max_iter=2000).fit(responses[:half], labels[:half])
    return model.score(responses[half:], labels[half:])


def test_only_the_named_roi_carries_the_class(study):
    subject = study.subject()
    accuracy = {
        roi: decoded(subject.truth["noiseless"][:, mask], subject.truth["labels"])
        for roi, mask in subject.atlas.rois.items()
    }
    assert accuracy.pop("FFC") > 0.9
    # 320 tested: chance 0.25 has a standard error of 0.024.
    assert max(accuracy.values()) < 0.25 + 4 * 0.024


def test_no_roi_carries_the_class_without_carries(silent):
    truth = silent.subject().truth
    assert decoded(truth["noiseless"], truth["labels"]) < 0.25 + 4 * 0.024
    assert truth["signal_roi"] is None and not silent.extra["carries"]


def test_other_rois_do_not_change_when_planted_pixels_do(study):
    subject = study.subject()
    image = pixels(study.set("test"))[:4]
    changed = image.copy()
    changed[:, planted.region_mask()] = 255 - changed[:, planted.region_mask()] // 3
    moved = np.abs(subject.truth["respond"](changed) - subject.truth["respond"](image)).max(0)
    signal = subject.atlas.rois["FFC"]
    # The filters have no mean, so what is left is rounding.
    assert moved[~signal].max() < 1e-2
    assert moved[signal].min() > 0.1


def test_repeats_reach_the_planted_ceiling(study):
    subject = study.subject()
    a, b, c = np.moveaxis(subject.repeats.astype(np.float64), 1, 0)

    def r(x, y):
        x, y = x - x.mean(0), y - y.mean(0)
        return (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))

    single = (r(a, b) + r(a, c) + r(b, c)) / 3
    mean_of_3 = 3 * single / (1 + 2 * single)  # Spearman-Brown
    assert np.abs(mean_of_3 - subject.noise_ceiling).max() < 0.12
    assert abs(np.mean(mean_of_3 - subject.noise_ceiling)) < 0.02
    assert np.allclose(subject.responses, subject.repeats.mean(1))


def test_sessions_are_standardised(study):
    subject = study.subject()
    for session in np.unique(subject.sessions):
        part = subject.repeats[subject.sessions == session].reshape(-1, subject.n_vertices)
        assert np.allclose(part.mean(0), 0, atol=1e-4) and np.allclose(part.std(0), 1, atol=1e-3)


def test_maps_are_the_receptive_fields(study):
    atlas, rf = study.subject().atlas, study.subject().truth["receptive_fields"]
    angle, eccentricity = np.radians(atlas.maps["polar_angle"]), atlas.maps["eccentricity"]
    assert np.allclose(np.stack([np.sin(angle), np.cos(angle)]) * eccentricity, rf[:, :2].T)
    left = np.asarray(atlas.hemisphere) == 0
    assert (rf[left, 0] > 0).all() and (
        rf[~left, 0] < 0
    ).all()  # each hemisphere sees the other half of the field


def test_energy_prefers_its_own_orientation():
    y, x = np.mgrid[0:56, 0:56]
    for k in range(4):
        angle = np.pi * k / 4
        across = -x * np.sin(angle) - y * np.cos(angle)
        wave = 128 + 60 * np.cos(2 * np.pi * across / planted.WAVELENGTH)
        image = np.repeat(wave[None, :, :, None], 3, axis=3).astype(np.uint8)
        energy = planted.orientation_energy(image)[0, :, 20:36, 20:36].mean((1, 2))
        assert energy.argmax() == k and np.sort(energy)[-2] < 0.5 * energy[k]


def test_attributes_tell_the_class_of_the_region_they_come_from(study, silent):
    for found, least, most in ((study.subject(), 0.9, 1.0), (silent.subject(), 0.0, 0.35)):
        assert least <= decoded(10 * found.attributes, found.truth["labels"]) <= most


def test_generation_is_a_function_of_the_seed(study):
    again, other = load(seed=3, **SIZES), load(seed=4, **SIZES)
    assert again.fingerprint() == study.fingerprint() != other.fingerprint()
    longer = load(seed=3, **{**SIZES, "n_train": 60})
    assert longer.set("test").fingerprint() == study.set("test").fingerprint()


def test_sets_are_disjoint_and_balanced(study):
    parts = [*study.sets.values(), study.subject().stimuli]
    digests = [d for part in parts for d in part.digests()]
    assert len(set(digests)) == len(digests)
    for part in study.sets.values():
        assert np.ptp(np.bincount(part.labels)) == 0
    assert (study.subject().stimuli.labels == -1).all()


@pytest.mark.parametrize("roi", ["V1", "PHA"])
def test_any_roi_can_carry_the_signal(roi):
    subject = load(
        seed=1, signal_roi=roi, **{**SIZES, "n_encoder": 200, "n_encoder_test": 80}
    ).subject()
    labels = subject.truth["labels"]
    for name in RF_SIZE:
        found = decoded(subject.truth["noiseless"][:, subject.atlas.rois[name]], labels)
        assert (found > 0.85) == (name == roi)


def test_vertices_of_an_roi_are_connected_on_the_surface(study):
    from nilearn.datasets import load_fsaverage
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    atlas = study.subject().atlas
    for side, part in enumerate(("left", "right")):
        faces = load_fsaverage("fsaverage5")["pial"].parts[part].faces
        edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        graph = coo_matrix((np.ones(len(edges)), edges.T), (10242, 10242)).tocsr()
        for mask in atlas.rois.values():
            vertices = atlas.surface_index[mask & (atlas.hemisphere == side)]
            assert len(set(vertices)) == 12
            assert connected_components(graph[vertices][:, vertices])[0] == 1


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'FFC'"):
        load(signal_roi="FFA")
    with pytest.raises(ConfigError, match="n_train of at least 4; got 2"):
        load(n_train=2)
    with pytest.raises(ConfigError, match="did you mean 'carries'"):
        load_study("planted", carry=True)
