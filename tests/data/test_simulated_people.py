"""Another simulated subject shares as much as was planted, and says that it is simulated."""

from dataclasses import replace

import numpy as np
import pytest

from bmfl_lab.data import load_study
from bmfl_lab.data.simulate import simulate_other
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.metrics.rsa import compare_rdms, rdm


@pytest.fixture(scope="module")
def subject():
    return load_study("planted", n_encoder=120, n_encoder_val=20, n_encoder_test=60).subject()


def likeness(a, b, roi="V2"):
    mask = a.atlas.select(roi)
    left, right = (rdm(np.asarray(s.truth["noiseless"])[:, mask], "euclidean") for s in (a, b))
    return compare_rdms(left, right)[0, 0]


def test_the_share_is_what_two_subjects_have_in_common(subject):
    same, some, none = (simulate_other(subject, share=s) for s in (1.0, 0.7, 0.0))
    assert likeness(subject, same) > 0.9
    assert 0.3 < likeness(subject, some) < 0.9
    assert abs(likeness(subject, none)) < 0.1
    # vertices do not correspond, only patterns do
    assert np.abs(pearson(subject.truth["noiseless"], same.truth["noiseless"])).mean() < 0.5


def test_it_is_a_subject_of_its_own_with_known_noise(subject):
    other = simulate_other(subject, seed=3)
    assert (
        other.simulated
        and other.name == "simulated-planted-other3"
        and other.repeats.shape == subject.repeats.shape
    )
    assert other.stimuli is subject.stimuli and other.splits is subject.splits
    r2 = pearson(other.responses, other.truth["noiseless"]) ** 2
    np.testing.assert_allclose(np.mean(r2), np.mean(subject.noise_ceiling), atol=0.05)
    np.testing.assert_array_equal(simulate_other(subject, seed=3).responses, other.responses)
    assert not np.array_equal(simulate_other(subject, seed=4).responses, other.responses)


def test_refusals(subject):
    with pytest.raises(ConfigError, match=r"a share from 0 to 1; got 1\.5"):
        simulate_other(subject, share=1.5)
    with pytest.raises(DataError, match="a simulated subject with noiseless responses"):
        simulate_other(replace(subject, kind="measured"))
    with pytest.raises(DataError, match="a simulated subject with noiseless responses"):
        simulate_other(replace(subject, truth={}))
