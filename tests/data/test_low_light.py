"""Low light against the published pipeline: every range, matrix and depth, and the whole image computed again."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from scenes import scene

from bmfl_lab.data.shifts import SHIFTS, made

# Cui et al. 2021 (MAET), with the cameras of Brooks et al. 2019; sRGB primaries to XYZ as in IEC
# 61966-2-1.
TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]
CAMERAS = [
    [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
    [[0.4913, -0.0541, -0.0202], [-0.613, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
    [[0.838, -0.263, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
    [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.097, 0.1581, 0.5181]],
]
EXPOSURE = {
    "physical": {1: 0.40, 2: 0.25, 3: 0.15, 4: 0.10, 5: 0.05},
    "maet": dict.fromkeys(range(1, 6), 0.1),
}


class Recorder(np.random.Generator):
    """Record every draw with its arguments; `fixed`, if given, is what `random` returns."""

    def __init__(self, seed=0, fixed=None):
        super().__init__(np.random.PCG64(seed))
        self.calls, self.fixed = [], fixed

    def _keep(self, kind, arguments, value):
        self.calls.append((kind, arguments, value))
        return value

    def random(self, *args, **kwargs):
        return self._keep(
            "random", (), super().random(*args, **kwargs) if self.fixed is None else self.fixed
        )

    def uniform(self, low, high, size=None):
        return self._keep("uniform", (low, high), super().uniform(low, high, size))

    def normal(self, loc=0.0, scale=1.0, size=None):
        return self._keep("normal", (loc, scale), super().normal(loc, scale, size))

    def integers(self, high, *args, **kwargs):
        return self._keep("integers", (high,), super().integers(high, *args, **kwargs))

    def choice(self, options):
        value = super().choice(options)
        self.calls = [a for a in self.calls if a[1] != (0,)]  # the draw of `integers` starts at 0
        return self._keep("choice", tuple(options), value)


def truncated(share, mean, sd, low, high):
    """Quantile of a normal distribution cut to [low, high]."""
    normal = NormalDist(mean, sd)
    return normal.inv_cdf(normal.cdf(low) + share * (normal.cdf(high) - normal.cdf(low)))


def developed(image, k, recorder):
    """The published steps, one after another, with the draws that were made."""
    draws = iter(recorder)
    x = image / 255
    gamma = next(draws)
    x = (0.5 - np.sin(np.arcsin(1 - 2 * x) / 3)) ** gamma
    camera = np.dot(CAMERAS[next(draws)], TO_XYZ)
    camera = camera / camera.sum(1)[:, None]
    red, blue, gain = next(draws), next(draws), next(draws)
    x = np.clip(np.einsum("ij,rcj->rci", camera, x), 0, 1)
    x = np.clip(x * [gain / red, gain, gain / blue], 0, 1) * k
    log_shot, wobble, noise, depth, steps = (
        next(draws),
        next(draws),
        next(draws),
        next(draws),
        next(draws),
    )
    assert np.abs(steps).max() <= 1 / (255 * depth) and np.abs(steps).max() > 0.99 / (255 * depth)
    variance = x * np.exp(log_shot) + np.exp(2.18 * log_shot + 1.20 + wobble)
    x = x + noise * np.sqrt(variance) + steps
    x = np.clip(x * [red, 1, blue], 0, 1)
    x = np.clip(np.einsum("ij,rcj->rci", np.linalg.inv(camera), x), 0, 1)
    return x ** (1 / gamma)


@pytest.mark.parametrize("form", ["physical", "maet"])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_the_whole_image_follows_the_published_steps(form, severity):
    image, mean = scene(48, severity), EXPOSURE[form][severity]
    cut = (mean, 0.2 * mean, mean / 2, 2 * mean) if form == "physical" else (0.1, 0.08, 0.01, 0.4)
    for seed in range(6):
        recorder = Recorder(seed)
        found = SHIFTS["low_light"](image, severity, recorder, form=form)
        kinds = [kind for kind, _, _ in recorder.calls]
        assert kinds == [
            "random",
            "uniform",
            "integers",
            "uniform",
            "uniform",
            "normal",
            "uniform",
            "normal",
            "normal",
            "choice",
            "uniform",
        ]
        k = truncated(recorder.calls[0][2], *cut)
        expected = 255 * developed(image, k, [value for _, _, value in recorder.calls[1:]])
        assert np.abs(found - expected).max() <= 0.5 + 1e-3, seed


def test_every_draw_has_its_published_range():
    recorder, cameras, depths = Recorder(), set(), set()
    for seed in range(60):
        recorder = Recorder(seed)
        made.low_light(scene(16), 3, recorder)
        bounds = [arguments for _, arguments, _ in recorder.calls]
        assert bounds[1] == (2.0, 3.5)  # gamma
        assert bounds[3] == (1.9, 2.4) and bounds[4] == (1.5, 1.9)  # red and blue gain
        assert bounds[5] == (0.8, 0.1)  # brightness
        assert bounds[6] == pytest.approx((np.log(1e-4), np.log(0.012))) and bounds[7] == (
            0,
            0.26,
        )  # shot and read noise
        assert bounds[2] == (4,) and bounds[9] == (12, 14, 16)
        cameras.add(int(recorder.calls[2][2]))
        depths.add(int(recorder.calls[9][2]))
    assert cameras == {0, 1, 2, 3} and depths == {12, 14, 16}


@pytest.mark.parametrize(
    "cut", [(0.1, 0.08, 0.01, 0.4), (0.1, 0.08, 0.01, 1.0), (0.25, 0.05, 0.125, 0.5)]
)
def test_the_exposure_is_a_truncated_normal(cut):
    for share in (1e-6, 0.01, 0.25, 0.5, 0.75, 0.99, 1 - 1e-6):
        assert made._truncated_normal(Recorder(fixed=share), *cut) == pytest.approx(
            truncated(share, *cut), abs=1e-6
        )
    drawn = np.asarray([made._truncated_normal(np.random.default_rng(s), *cut) for s in range(300)])
    normal = np.random.default_rng(0).normal(cut[0], cut[1], 200_000)
    kept = normal[(normal > cut[2]) & (normal < cut[3])]  # the same by rejection
    assert cut[2] < drawn.min() and drawn.max() < cut[3]
    assert np.median(drawn) == pytest.approx(np.median(kept), abs=4 * kept.std() / np.sqrt(300))
    assert drawn.std() == pytest.approx(kept.std(), rel=0.2)


def test_matrices_are_those_of_the_four_cameras():
    np.testing.assert_array_equal(made._XYZ_TO_CAMERA, CAMERAS)
    np.testing.assert_array_equal(made._RGB_TO_XYZ, TO_XYZ)


def test_the_gamma_form_is_a_power_and_noise():
    image = scene(48)
    for severity, m in EXPOSURE["physical"].items():
        noise = np.random.default_rng(7).normal(0, 0.02, image.shape)
        expected = 255 * np.clip(m * (image / 255) ** 1.5 + noise, 0, 1)
        found = SHIFTS["low_light"](image, severity, np.random.default_rng(7), form="gamma")
        assert np.abs(found - expected).max() <= 0.5 + 1e-3
