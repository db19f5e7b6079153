"""What a network is aligned with: principal components of z-scored responses, fitted on training images only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bmfl_lab.errors import DataError, message


@dataclass(frozen=True)
class ResponseFeatures:
    """A z-score and a rotation, with where they came from.

    Parameters
    ----------
    mean, scale : ndarray of float32, shape (n_vertices,)
        Of the training responses; scale 1 for a constant vertex, which then contributes nothing.
    components : ndarray of float32, shape (n_components, n_vertices)
        Orthonormal directions by decreasing variance.
    gain : float
        One factor for all features, that gives them a mean square of 1 over the training images.
    explained : float
        Share of the training variance that the components hold.
    n_constant : int
        Number of vertices that never change.
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    gain: float
    explained: float
    n_constant: int = 0

    def transform(self, responses: np.ndarray) -> np.ndarray:
        """Return features (n, n_components), float32, of responses (n, n_vertices).

        Raises
        ------
        DataError
            If the number of vertices differs.
        """
        if np.ndim(responses) != 2 or np.shape(responses)[1] != len(self.mean):
            raise DataError(
                message(
                    f"responses of shape (n, {len(self.mean)})",
                    f"{np.shape(responses)}",
                    "use the same vertices",
                )
            )
        z = (np.asarray(responses, dtype=np.float32) - self.mean) / self.scale
        return (z @ self.components.T * np.float32(self.gain)).astype(np.float32)


def fit_response_features(responses: np.ndarray, n_components: int) -> ResponseFeatures:
    """Fit the z-score and the principal components on training responses.

    Parameters
    ----------
    responses : ndarray, shape (n_train, n_vertices)
        Averages over trials; training images only.
    n_components : int
        Number of features.

    Returns
    -------
    ResponseFeatures

    Raises
    ------
    DataError
        If values are not finite, or the responses have a lower rank than `n_components`.

    Notes
    -----
    1,024 components of trial-averaged visual cortex are published; that they are fitted on the
    training images only, that vertices are z-scored first and that one gain is applied is our
    choice.

    References
    ----------
    Lu & Wang 2025, Cognitive Neurodynamics 19:61 (arXiv:2407.10414).
    """
    y = np.asarray(responses, dtype=np.float64)
    if y.ndim != 2 or not np.isfinite(y).all():
        raise DataError(
            message(
                "finite responses of shape (n_train, n_vertices)",
                f"shape {y.shape}",
                "drop NaN vertices first",
            )
        )
    mean, scale = y.mean(axis=0), y.std(axis=0)
    constant = scale <= 1e-12 * np.maximum(np.abs(mean), 1e-30)
    scale = np.where(constant, 1, scale)
    z = np.where(constant, 0, (y - mean) / scale)
    _, values, directions = np.linalg.svd(z, full_matrices=False)
    rank = int(np.sum(values > values.max(initial=0) * max(z.shape) * np.finfo(np.float64).eps))
    if not 1 <= n_components <= rank:
        raise DataError(
            message(
                f"1 to {rank} components (the rank of {y.shape[0]} training images x {y.shape[1]} vertices)",
                str(n_components),
                "ask for fewer components, or use more training images",
            )
        )
    kept = directions[:n_components]
    power = float(np.sum(values[:n_components] ** 2))
    return ResponseFeatures(
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        components=kept.astype(np.float32),
        gain=float(np.sqrt(len(y) * n_components / power)),
        explained=power / float(np.sum(values**2)),
        n_constant=int(constant.sum()),
    )
