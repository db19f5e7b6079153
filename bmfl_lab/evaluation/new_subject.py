"""Encoding models of a new subject from few trials, with tuning that earlier subjects share.

Shapes: n stimuli, D features, V vertices, K shared directions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, require
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.models.ridge import RidgeFit, fit_ridge
from bmfl_lab.runtime import rng

GAINS = (0.0, 1.0, 3.0, 10.0, 30.0)
"""Weights of the shared directions to choose from (our choice); 0 is training from scratch."""
MODELS = ("shared", "random directions", "from scratch")


def _ridge(X: np.ndarray, Y: np.ndarray) -> RidgeFit:
    with warnings.catch_warnings():
        # features may say nothing about a vertex; then no penalty is best
        warnings.filterwarnings("ignore", message="expected at most 5%")
        return fit_ridge(X, Y, n_folds=5)


def shared_tuning(
    features: Sequence[np.ndarray], responses: Sequence[np.ndarray], n_shared: int = 10
) -> np.ndarray:
    """Return the directions in feature space to which earlier subjects respond most.

    Parameters
    ----------
    features : sequence of ndarray, each of shape (n, D)
        Standardised features of the training stimuli of each earlier subject.
    responses : sequence of ndarray, each of shape (n, V)
        Their responses; V may differ between subjects.
    n_shared : int, default 10
        Number of directions.

    Returns
    -------
    ndarray of float32, shape (D, K)
        Orthonormal directions, strongest first; K is `n_shared`, or fewer if D is smaller.

    Raises
    ------
    DataError
        If there is no earlier subject.

    Notes
    -----
    The directions are the left singular vectors of the ridge weights of all earlier subjects, each
    subject scaled to the same total weight. That they are the shared part is our choice; MindBridge
    and NeuroPictor train deep networks instead.
    """
    require(
        len(features) >= 1 and len(features) == len(responses),
        DataError,
        "features and responses of at least one earlier subject",
        f"{len(features)} and {len(responses)}",
        "use a study of two or more subjects",
    )
    weights = [_ridge(x, y).coef for x, y in zip(features, responses)]
    weights = [w / max(float(np.linalg.norm(w)), 1e-12) for w in weights]
    return np.linalg.svd(np.hstack(weights), full_matrices=False)[0][:, :n_shared]


def fit_new_subject(
    features: np.ndarray,
    responses: np.ndarray,
    shared: np.ndarray | None = None,
    gains: Sequence[float] = GAINS,
) -> np.ndarray:
    """Fit a ridge regression whose penalty is lower along shared directions.

    Parameters
    ----------
    features : ndarray, shape (n, D)
        Standardised features of the new subject's trials.
    responses : ndarray, shape (n, V)
        Responses.
    shared : ndarray, shape (D, K), optional
        Result of `shared_tuning`; without it the subject is fitted from scratch.
    gains : sequence of float
        Weights of the shared directions, one of which cross-validation over the trials chooses.
        With 0 the shared directions have no advantage.

    Returns
    -------
    ndarray of float32, shape (D + 1, V)
        Weights of the features, and the constant term in the last row.
    """
    fits = {}
    for gain in gains if shared is not None else (0.0,):
        wide = features if gain == 0 else np.hstack([features, gain * (features @ shared)])
        fit = _ridge(wide, responses)
        coef = fit.coef[: features.shape[1]]
        if gain:
            coef = coef + gain * shared @ fit.coef[features.shape[1] :]
        fits[gain] = (float(np.mean(fit.cv_score)), np.vstack([coef, fit.intercept]))
    return max(fits.values(), key=lambda found: found[0])[1]


def new_subject_curve(
    earlier: Sequence[tuple[np.ndarray, np.ndarray]],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    n_trials: Sequence[int],
    *,
    n_shared: int = 10,
    n_draws: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare models of a new subject with and without earlier subjects, by number of trials.

    Parameters
    ----------
    earlier : sequence of (features (n, D), responses (n, V))
        Training stimuli of each earlier subject.
    train, test : (features (n, D), responses (n, V))
        Stimuli of the new subject.
    n_trials : sequence of int
        Numbers of training trials of the new subject, each at least 10.
    n_shared : int, default 10
        Number of shared directions.
    n_draws : int, default 5
        Random subsets of trials per number.
    seed : int, default 0
        Seed of the subsets and of the random directions.

    Returns
    -------
    DataFrame
        Columns model ("shared", "from scratch", and the control "random directions" with as many
        directions), n_trials, value (Pearson r over test stimuli, mean over vertices), ci_low and
        ci_high (95 % interval over subsets of trials).

    Raises
    ------
    DataError
        If there is no earlier subject, or the new one has fewer trials than wanted.

    Notes
    -----
    Features are standardised with all training stimuli of the new subject, whose responses are not
    used for it.
    """
    n = len(train[0])
    require(
        len(n_trials) and min(n_trials) >= 10 and max(n_trials) <= n,
        DataError,
        f"numbers of trials from 10 to {n}, which the new subject has",
        tuple(n_trials),
        "ask for fewer, or take a subject with more",
    )
    mean, spread = train[0].mean(0), train[0].std(0)
    scale = np.where(spread > 1e-6, spread, 1)
    shared = shared_tuning(
        [(x - mean) / scale for x, _ in earlier], [y for _, y in earlier], n_shared
    )
    x, x_test = (train[0] - mean) / scale, (test[0] - mean) / scale
    draw = rng(seed, "random directions").standard_normal(shared.shape)
    directions = dict(zip(MODELS, (shared, np.linalg.qr(draw)[0], None)))
    rows = []
    for count in n_trials:
        subsets = [rng(seed, "trials", count, k).permutation(n)[:count] for k in range(n_draws)]
        for model, known in directions.items():
            scores = []
            for rows_of in subsets:
                weights = fit_new_subject(x[rows_of], train[1][rows_of], known)
                r = pearson(test[1], x_test @ weights[:-1] + weights[-1])
                scores.append(float(np.mean(np.nan_to_num(r))))
            found = bootstrap_mean(np.asarray(scores), seed=seed)
            ends = {"ci_low": found.low, "ci_high": found.high}
            rows.append({"model": model, "n_trials": count, "value": found.value, **ends})
    return pd.DataFrame(rows)
