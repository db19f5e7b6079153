"""Brain encoders that are linear in the tokens: a plain linear map, and a receptive field times feature weights.

Shape suffixes: B batch, P patches, D token width, F features, V vertices, C candidate receptive
fields.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.models.ridge import DEFAULT_ALPHAS, RidgeFit, fit_ridge, share_at_edge

POOLINGS = ("mean", "grid")


def pool_patches(patches_BPD: Tensor, pooling: str) -> Tensor:
    """Return one vector an image: the mean patch, or all patches side by side.

    Raises
    ------
    ConfigError
        If the pooling is unknown.
    """
    if pooling not in POOLINGS:
        raise ConfigError(
            message(f"a pooling among {POOLINGS}", repr(pooling), "choose one of them")
        )
    return patches_BPD.mean(1) if pooling == "mean" else patches_BPD.flatten(1)


class LinearEncoder(nn.Module):
    """One linear map from pooled tokens to responses.

    Parameters
    ----------
    token_width : int
        Width D of the tokens.
    n_vertices : int
        Number of vertices V.
    pooling : {"mean", "grid"}
        Mean over patches, or every patch with weights of its own.
    n_patches : int, default 1
        Number of patches, for "grid". CLS tokens come as one patch.

    Notes
    -----
    The predictions have a rank of at most the number of features: they hold nothing beyond a linear
    map of the tokens, which makes this encoder a control as much as a model.
    """

    def __init__(
        self, *, token_width: int, n_vertices: int, pooling: str = "mean", n_patches: int = 1
    ) -> None:
        super().__init__()
        pool_patches(torch.zeros(1, 1, 1), pooling)
        self.pooling = pooling
        self.n_patches = n_patches
        self.linear = nn.Linear(token_width * (n_patches if pooling == "grid" else 1), n_vertices)

    @classmethod
    def from_ridge(
        cls, fit: RidgeFit, *, token_width: int, pooling: str = "mean", n_patches: int = 1
    ) -> LinearEncoder:
        """Return the encoder that computes a ridge fit's predictions."""
        made = cls(
            token_width=token_width, n_vertices=len(fit.alpha), pooling=pooling, n_patches=n_patches
        )
        with torch.no_grad():
            made.linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(fit.coef.T)))
            made.linear.bias.copy_(torch.from_numpy(fit.intercept))
        return made

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return responses, shape (B, V)."""
        return self.linear(pool_patches(patches_BPD, self.pooling))


def candidate_fields(
    grid: tuple[int, int], per_side: int = 8, sizes: Sequence[float] = (0.08, 0.16, 0.3)
) -> Tensor:
    """Return candidate receptive fields, shape (C, 3): x and y of the centre, and sigma.

    Coordinates are shares of the image's side, x to the right and y down from the upper left
    corner. Centres stand on a regular lattice; the last candidate is the whole image (sigma
    infinite).
    """
    at = (torch.arange(per_side) + 0.5) / per_side
    y, x = torch.meshgrid(at, at, indexing="ij")
    lattice = torch.stack([x.ravel(), y.ravel()], 1)
    found = [torch.cat([lattice, torch.full((len(lattice), 1), float(s))], 1) for s in sizes]
    return torch.cat([*found, torch.tensor([[0.5, 0.5, torch.inf]])])


def field_weights(fields_C3: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return Gaussian weights over patches that sum to 1, shape (C, rows * columns)."""
    rows, columns = grid
    y = ((torch.arange(rows) + 0.5) / rows).repeat_interleave(columns)
    x = ((torch.arange(columns) + 0.5) / columns).repeat(rows)
    distance2 = (x - fields_C3[:, :1]) ** 2 + (y - fields_C3[:, 1:2]) ** 2
    return (-distance2 / (2 * fields_C3[:, 2:] ** 2)).softmax(1)


class RetinotopicEncoder(nn.Module):
    """Each vertex has one receptive field, and weights for the features seen through it.

    Parameters
    ----------
    fields : Tensor, shape (C, 3)
        Receptive fields as in `candidate_fields`.
    choice : Tensor of int64, shape (V,)
        Receptive field of each vertex.
    projection : Tensor, shape (D, F)
        From tokens to features.
    coef, intercept : Tensor, shape (V, F) and (V,)
        Feature weights.
    grid : tuple of int
        Rows and columns of the patches.

    References
    ----------
    St-Yves & Naselaris (2018), The feature-weighted receptive field, NeuroImage 180.
    """

    def __init__(
        self,
        *,
        fields: Tensor,
        choice: Tensor,
        projection: Tensor,
        coef: Tensor,
        intercept: Tensor,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.fit_facts: dict[str, float] = {}
        for name, value in {
            "fields_C3": fields,
            "choice_V": choice,
            "projection_DF": projection,
            "coef_VF": coef,
            "intercept_V": intercept,
        }.items():
            self.register_buffer(name, value)
        self.register_buffer("weights_CP", field_weights(fields.cpu(), self.grid), persistent=False)

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return responses, shape (B, V)."""
        seen_BCF = self.weights_CP.to(patches_BPD.dtype) @ (
            patches_BPD @ self.projection_DF.to(patches_BPD.dtype)
        )
        out_BV = patches_BPD.new_empty(len(patches_BPD), len(self.choice_V))
        for c in self.choice_V.unique().tolist():
            mine = self.choice_V == c
            out_BV[:, mine] = seen_BCF[:, c] @ self.coef_VF[mine].T.to(seen_BCF.dtype)
        return out_BV + self.intercept_V

    def receptive_fields(self) -> np.ndarray:
        """Return x, y and sigma of each vertex as shares of the image's side, shape (V, 3)."""
        return self.fields_C3[self.choice_V].cpu().numpy()


def fit_retinotopic(
    patches: np.ndarray,
    Y: np.ndarray,
    *,
    grid: tuple[int, int],
    n_features: int = 64,
    per_side: int = 8,
    sizes: Sequence[float] = (0.08, 0.16, 0.3),
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    n_folds: int = 5,
    device: str = "cpu",
) -> RetinotopicEncoder:
    """Fit receptive field and feature weights: ridge on every candidate field, the best by cross-validation kept.

    Parameters
    ----------
    patches : ndarray, shape (n_stimuli, n_patches, D)
        Tokens.
    Y : ndarray, shape (n_stimuli, n_vertices)
        Responses.
    grid : tuple of int
        Rows and columns of the patches.
    n_features : int, default 64
        Principal components of the tokens that are kept (all if D is smaller).
    per_side, sizes
        As `candidate_fields`.
    alphas, n_folds, device
        As `bmfl_lab.models.fit_ridge`.

    Returns
    -------
    RetinotopicEncoder
        Its `fit_facts` hold the share of vertices whose penalty, on the field they chose, lies at
        an end of the grid, and the median penalty.

    Raises
    ------
    DataError
        If the grid does not have n_patches cells.

    Warns
    -----
    UserWarning
        If that share is above 5 %.

    Notes
    -----
    Candidate fields, Gaussian shape and principal components are our choice; every candidate is
    fitted in closed form, so that no vertex depends on where a gradient descent began.
    """
    if patches.shape[1] != grid[0] * grid[1]:
        raise DataError(
            message(
                f"{grid[0] * grid[1]} patches for grid {grid}", f"{patches.shape}", "give the grid"
            )
        )
    fields = candidate_fields(grid, per_side, sizes)
    projection = _principal(patches, min(n_features, patches.shape[2]))
    features = np.matmul(np.asarray(patches, np.float32), projection)
    seen = torch.einsum(
        "cp,npf->cnf", field_weights(fields, grid), torch.from_numpy(features)
    ).numpy()
    best, alpha = np.full(Y.shape[1], -np.inf, np.float32), np.empty(Y.shape[1], np.float32)
    choice = np.zeros(Y.shape[1], np.int64)
    coef = np.zeros((Y.shape[1], features.shape[2]), np.float32)
    intercept = np.zeros(Y.shape[1], np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="expected at most 5%"
        )  # poor candidates want the largest penalty
        for c in range(len(fields)):
            fit = fit_ridge(seen[c], Y, alphas, n_folds, device=device, precision="float32")
            better = fit.cv_score > best
            best[better], choice[better], alpha[better] = fit.cv_score[better], c, fit.alpha[better]
            coef[better], intercept[better] = fit.coef.T[better], fit.intercept[better]
    made = RetinotopicEncoder(
        fields=fields,
        choice=torch.from_numpy(choice),
        projection=torch.from_numpy(projection),
        coef=torch.from_numpy(coef),
        intercept=torch.from_numpy(intercept),
        grid=grid,
    )
    made.fit_facts = {
        "alpha_edge_share": share_at_edge(alpha, alphas),
        "alpha_median": float(np.median(alpha)),
    }
    return made


def _principal(patches: np.ndarray, n: int, rows: int = 2000) -> np.ndarray:
    """Return the leading principal directions of the tokens, scaled to unit variance, float32 (D, n)."""
    step = max(1, len(patches) // rows)
    x = np.asarray(patches[::step], np.float64).reshape(-1, patches.shape[2])
    lam, V = np.linalg.eigh(np.cov(x, rowvar=False).reshape(x.shape[1], -1))
    scale = 1 / np.sqrt(np.maximum(lam[::-1][:n], 1e-8 * max(lam[-1], 1e-30)))
    return (V[:, ::-1][:, :n] * scale).astype(np.float32)


class ScaledEncoder(nn.Module):
    """An encoder of standardised responses, in the units of the responses.

    Parameters
    ----------
    encoder : nn.Module
        Patches to standardised responses.
    mean, scale : Tensor, shape (V,)
        What standardisation took away.
    """

    def __init__(self, *, encoder: nn.Module, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean_V", mean)
        self.register_buffer("scale_V", scale)

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return responses, shape (B, V)."""
        return self.encoder(patches_BPD) * self.scale_V + self.mean_V


class EnsembleEncoder(nn.Module):
    """Mean of encoders with weights per vertex.

    Parameters
    ----------
    members : sequence of nn.Module
        Encoders of the same vertices.
    weights : Tensor, shape (n_members, V)
        Sum to 1 at each vertex; from `ensemble_weights`.
    """

    def __init__(self, *, members: Sequence[nn.Module], weights: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights_MV", weights)

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return responses, shape (B, V)."""
        return sum(w * member(patches_BPD) for w, member in zip(self.weights_MV, self.members))


def ensemble_weights(scores: np.ndarray, temperature: float = 40.0) -> np.ndarray:
    """Return the softmax over encoders of ``temperature * r`` at each vertex.

    Parameters
    ----------
    scores : ndarray, shape (n_members, n_vertices)
        Validation r; NaN (undefined) counts as -1.
    temperature : float, default 40
        As in the released ensemble of Adeli et al. (2025).

    Returns
    -------
    ndarray of float32, shape (n_members, n_vertices)
    """
    z = temperature * np.nan_to_num(np.asarray(scores, np.float64), nan=-1.0)
    e = np.exp(z - z.max(0))
    return (e / e.sum(0)).astype(np.float32)
