"""A new subject from few trials, with and without shared tuning."""

import numpy as np

from bmfl_lab.evaluation.new_subject import fit_new_subject, new_subject_curve

D, K, V, N = 60, 4, 30, 300


def people(shared):
    """Return three subjects (features, responses), tuned to the same directions or to their own."""
    draw = np.random.default_rng(0)
    directions = draw.normal(size=(D, K))
    found = []
    for _ in range(3):
        own = directions if shared else draw.normal(size=(D, K))
        x = draw.normal(size=(N, D))
        signal = x @ own @ draw.normal(size=(K, V))
        found.append((x, signal + signal.std() * draw.normal(size=signal.shape)))
    return found


def curve(shared):
    *earlier, (x, y) = people(shared)
    train, test = (x[:200], y[:200]), (x[200:], y[200:])
    found = new_subject_curve(earlier, train, test, [30, 150], n_shared=K, n_draws=3)
    return found.pivot(index="n_trials", columns="model", values="value"), found


def test_planted_shared_tuning_lifts_the_curve_most_with_few_trials():
    values, found = curve(shared=True)
    gain = values["shared"] - values["from scratch"]
    assert gain[30] > 0.15 and gain[30] > gain[150] > 0
    # the control has as many directions, which no subject shares
    assert abs(values["random directions"] - values["from scratch"]).max() < 0.06
    few = found[found["n_trials"] == 30].set_index("model")
    assert few.loc["shared", "ci_low"] > few.loc["from scratch", "ci_high"]


def test_without_shared_tuning_both_curves_are_equal():
    values, _ = curve(shared=False)
    assert abs(values["shared"] - values["from scratch"]).max() < 0.05


def test_gain_zero_is_training_from_scratch():
    x, y = people(True)[0]
    alone = fit_new_subject(x, y)
    assert np.array_equal(alone, fit_new_subject(x, y, np.eye(D)[:, :2], gains=(0.0,)))
