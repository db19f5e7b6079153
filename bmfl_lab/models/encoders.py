"""Brain encoders as modules: patch tokens of a frozen backbone to one response per vertex.

`LinearEncoder` is one linear map, `RetinotopicEncoder` gives each vertex a receptive field, and
`ROIQueryEncoder` lets one learned query per region attend to the patches. `ScaledEncoder` and
`EnsembleEncoder` wrap encoders. Each of them describes itself as JSON values (`describe`), from
which `build_encoder` makes it again.

Shape suffixes: B batch, P patches, D token width, F features, V vertices, C candidate receptive
fields, M ensemble members, R queries, E model width, H heads, K head width, G groups of vertices
that are read out from the same set of queries.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmfl_lab.errors import ConfigError, DataError, message, require, require_known
from bmfl_lab.models.ridge import DEFAULT_ALPHAS, RidgeFit, fit_ridge, share_at_edge

POOLINGS = ("mean", "grid")
SIDES = ("left", "right")
KINDS = ("linear", "roi_query", "retinotopic", "scaled", "ensemble")


def flatten_patches(patches_BPD: Tensor, pooling: str) -> Tensor:
    """Return one vector per image: the mean patch, or all patches side by side.

    Parameters
    ----------
    patches_BPD : Tensor, shape (B, P, D)
        Patch tokens.
    pooling : {"mean", "grid"}
        "mean" averages over patches; "grid" keeps all of them.

    Returns
    -------
    Tensor, shape (B, D) or (B, P * D)

    Raises
    ------
    ConfigError
        If the pooling is unknown.
    """
    require_known(pooling, POOLINGS, ConfigError, f"a pooling among {POOLINGS}")
    return patches_BPD.mean(1) if pooling == "mean" else patches_BPD.flatten(1)


class LinearEncoder(nn.Module):
    """Map pooled tokens to responses linearly.

    Parameters
    ----------
    token_width : int
        Width D of the tokens.
    n_vertices : int
        Number of vertices V.
    pooling : {"mean", "grid"}, default "mean"
        Average over patches, or give every patch its own weights.
    n_patches : int, default 1
        Number of patches P, needed for "grid". A class token counts as one patch.

    Notes
    -----
    The rank of the predictions is at most the number of features. They contain nothing beyond a
    linear map of the tokens, so that this encoder is also a control.
    """

    def __init__(
        self, *, token_width: int, n_vertices: int, pooling: str = "mean", n_patches: int = 1
    ) -> None:
        super().__init__()
        flatten_patches(torch.zeros(1, 1, 1), pooling)
        self.sizes = {"token_width": token_width, "pooling": pooling, "n_patches": n_patches}
        self.pooling = pooling
        self.linear = nn.Linear(token_width * (n_patches if pooling == "grid" else 1), n_vertices)

    @classmethod
    def from_ridge(
        cls, fit: RidgeFit, *, token_width: int, pooling: str = "mean", n_patches: int = 1
    ) -> LinearEncoder:
        """Return the encoder that computes the predictions of a ridge fit.

        Parameters
        ----------
        fit : RidgeFit
            Fit on tokens that `flatten_patches` flattened.
        token_width, pooling, n_patches
            Same as in the class.
        """
        encoder = cls(
            token_width=token_width, n_vertices=len(fit.alpha), pooling=pooling, n_patches=n_patches
        )
        with torch.no_grad():
            encoder.linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(fit.coef.T)))
            encoder.linear.bias.copy_(torch.from_numpy(fit.intercept))
        return encoder

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return responses, shape (B, V)."""
        return self.linear(flatten_patches(patches_BPD, self.pooling))

    def describe(self) -> dict[str, object]:
        """Return the type and sizes, for `build_encoder`."""
        return {"type": "linear", "n_vertices": self.linear.out_features, **self.sizes}


def candidate_fields(per_side: int = 8, sizes: Sequence[float] = (0.08, 0.16, 0.3)) -> Tensor:
    """Return candidate receptive fields: Gaussians on a regular lattice, and the whole image.

    Parameters
    ----------
    per_side : int, default 8
        Number of centres per side of the lattice.
    sizes : sequence of float, default (0.08, 0.16, 0.3)
        Standard deviations of the Gaussians, as shares of the image's side (our choice).

    Returns
    -------
    Tensor, shape (C, 3)
        x and y of the centre, and sigma, as shares of the image's side; x points right and y down
        from the upper left corner. The last candidate has an infinite sigma: it is the mean over
        the whole image.
    """
    at = (torch.arange(per_side) + 0.5) / per_side
    y, x = torch.meshgrid(at, at, indexing="ij")
    lattice = torch.stack([x.ravel(), y.ravel()], 1)
    fields = [torch.cat([lattice, torch.full((len(lattice), 1), float(s))], 1) for s in sizes]
    return torch.cat([*fields, torch.tensor([[0.5, 0.5, torch.inf]])])


def field_weights(fields_C3: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the weight of each patch in each receptive field.

    Parameters
    ----------
    fields_C3 : Tensor, shape (C, 3)
        Receptive fields as `candidate_fields` returns them.
    grid : tuple of int
        Rows and columns of the patches.

    Returns
    -------
    Tensor, shape (C, rows * columns)
        Gaussian weights; they sum to 1 over the patches.
    """
    rows, columns = grid
    y = ((torch.arange(rows) + 0.5) / rows).repeat_interleave(columns)
    x = ((torch.arange(columns) + 0.5) / columns).repeat(rows)
    distance2 = (x - fields_C3[:, :1]) ** 2 + (y - fields_C3[:, 1:2]) ** 2
    return (-distance2 / (2 * fields_C3[:, 2:] ** 2)).softmax(1)


class RetinotopicEncoder(nn.Module):
    """Give each vertex one receptive field and a weight per feature pooled by that field.

    Parameters
    ----------
    fields : Tensor, shape (C, 3)
        Receptive fields as in `candidate_fields`.
    choice : Tensor of int64, shape (V,)
        Index of the receptive field of each vertex.
    projection : Tensor, shape (D, F)
        Linear map from tokens to features.
    coef, intercept : Tensor, shape (V, F) and (V,)
        Feature weights and constant term of each vertex.
    grid : tuple of int
        Rows and columns of the patches.

    References
    ----------
    St-Yves & Naselaris (2018), The feature-weighted receptive field: an interpretable encoding
    model for complex feature spaces, NeuroImage 180.
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
        pooled_BCF = self.weights_CP.to(patches_BPD.dtype) @ (
            patches_BPD @ self.projection_DF.to(patches_BPD.dtype)
        )
        out_BV = patches_BPD.new_empty(len(patches_BPD), len(self.choice_V))
        for c in self.choice_V.unique().tolist():
            chosen_V = self.choice_V == c
            out_BV[:, chosen_V] = pooled_BCF[:, c] @ self.coef_VF[chosen_V].T.to(pooled_BCF.dtype)
        return out_BV + self.intercept_V

    def describe(self) -> dict[str, object]:
        """Return the type and sizes, for `build_encoder`."""
        return {"type": "retinotopic", "grid": list(self.grid)}

    def receptive_fields(self) -> np.ndarray:
        """Return the centre and the size of the receptive field of each vertex.

        Returns
        -------
        ndarray of float32, shape (V, 3)
            x and y of the centre, counted from the upper left corner, and standard deviation of the
            Gaussian field. All are fractions of the side of the image, from 0 to 1.
        """
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
    """Fit a receptive field and feature weights for each vertex.

    A ridge regression is fitted on every candidate field; each vertex keeps the field with the best
    cross-validated score.

    Parameters
    ----------
    patches : ndarray, shape (n_stimuli, n_patches, D)
        Patch tokens.
    Y : ndarray, shape (n_stimuli, n_vertices)
        Responses.
    grid : tuple of int
        Rows and columns of the patches.
    n_features : int, default 64
        Number of principal components of the tokens to keep (all if D is smaller).
    per_side : int, default 8
        Number of candidate centres per side of the image.
    sizes : sequence of float, default (0.08, 0.16, 0.3)
        Candidate standard deviations, as shares of the image's side.
    alphas : sequence of float
        Ridge penalties to choose from.
    n_folds : int, default 5
        Number of folds of the cross-validation.
    device : str, default "cpu"
        Device on which the ridge is computed.

    Returns
    -------
    RetinotopicEncoder
        Its `fit_facts` contain ``alpha_edge_share``, the share of vertices whose penalty lies at an
        end of the grid, and ``alpha_median``, the median penalty, both on the chosen fields.

    Raises
    ------
    DataError
        If the grid does not have n_patches cells.

    Warns
    -----
    UserWarning
        If ``alpha_edge_share`` is above 5 %.

    Notes
    -----
    The candidate fields and the principal components are our choice. Every candidate is fitted in
    closed form, so that no vertex depends on the starting point of a gradient descent.

    References
    ----------
    St-Yves & Naselaris (2018), NeuroImage 180: Gaussian receptive fields chosen from a grid.
    """
    require(
        patches.shape[1] == grid[0] * grid[1],
        DataError,
        f"{grid[0] * grid[1]} patches for grid {grid}",
        f"tokens of shape {patches.shape}",
        "give the grid of these tokens",
    )
    fields = candidate_fields(per_side, sizes)
    projection = _whitening(patches, min(n_features, patches.shape[2]))
    features = np.matmul(np.asarray(patches, np.float32), projection)
    pooled = torch.einsum(
        "cp,npf->cnf", field_weights(fields, grid), torch.from_numpy(features)
    ).numpy()
    best, alpha = np.full(Y.shape[1], -np.inf, np.float32), np.empty(Y.shape[1], np.float32)
    choice = np.zeros(Y.shape[1], np.int64)
    coef = np.zeros((Y.shape[1], features.shape[2]), np.float32)
    intercept = np.zeros(Y.shape[1], np.float32)
    with warnings.catch_warnings():
        # a candidate that fits badly prefers the largest penalty; only the chosen ones matter
        warnings.filterwarnings("ignore", message="expected at most 5%")
        for c in range(len(fields)):
            fit = fit_ridge(pooled[c], Y, alphas, n_folds, device=device, precision="float32")
            better = fit.cv_score > best
            best[better], choice[better], alpha[better] = fit.cv_score[better], c, fit.alpha[better]
            coef[better], intercept[better] = fit.coef.T[better], fit.intercept[better]
    encoder = RetinotopicEncoder(
        fields=fields,
        choice=torch.from_numpy(choice),
        projection=torch.from_numpy(projection),
        coef=torch.from_numpy(coef),
        intercept=torch.from_numpy(intercept),
        grid=grid,
    )
    encoder.fit_facts = {
        "alpha_edge_share": share_at_edge(alpha, alphas),
        "alpha_median": float(np.median(alpha)),
    }
    return encoder


def _whitening(patches: np.ndarray, n: int, rows: int = 2000) -> np.ndarray:
    """Return the leading principal directions of the tokens, scaled to unit variance, shape (D, n).

    About `rows` evenly spaced images are used, which is enough for a covariance of the tokens.
    """
    step = max(1, len(patches) // rows)
    x = np.asarray(patches[::step], np.float64).reshape(-1, patches.shape[2])
    lam, V = np.linalg.eigh(np.cov(x, rowvar=False).reshape(x.shape[1], -1))
    scale = 1 / np.sqrt(np.maximum(lam[::-1][:n], 1e-8 * max(lam[-1], 1e-30)))
    return (V[:, ::-1][:, :n] * scale).astype(np.float32)


class ScaledEncoder(nn.Module):
    """Return the predictions of an encoder of standardised responses to their original units.

    Parameters
    ----------
    encoder : nn.Module
        Maps patches (B, P, D) to standardised responses (B, V).
    mean, scale : Tensor, shape (V,)
        Mean and standard deviation that were removed from the training responses.
    """

    def __init__(self, *, encoder: nn.Module, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean_V", mean)
        self.register_buffer("scale_V", scale)

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return responses, shape (B, V)."""
        return self.encoder(patches_BPD) * self.scale_V + self.mean_V

    def describe(self) -> dict[str, object]:
        """Return the type and the description of the inner encoder, for `build_encoder`."""
        return {"type": "scaled", "encoder": self.encoder.describe()}


class EnsembleEncoder(nn.Module):
    """Average encoders with weights per vertex.

    Parameters
    ----------
    members : sequence of nn.Module
        Encoders of the same vertices that take the same tokens.
    weights : Tensor, shape (M, V)
        Weights from `ensemble_weights`; they sum to 1 at each vertex.
    """

    def __init__(self, *, members: Sequence[nn.Module], weights: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights_MV", weights)

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return responses, shape (B, V)."""
        return sum(w * member(patches_BPD) for w, member in zip(self.weights_MV, self.members))

    def describe(self) -> dict[str, object]:
        """Return the type and the descriptions of the members, for `build_encoder`."""
        return {"type": "ensemble", "members": [member.describe() for member in self.members]}


def ensemble_weights(scores: np.ndarray, temperature: float = 40.0) -> np.ndarray:
    """Return the softmax over encoders of ``temperature * r`` at each vertex.

    Parameters
    ----------
    scores : ndarray, shape (n_members, n_vertices)
        Validation r; NaN (undefined) counts as -1 (our choice).
    temperature : float, default 40
        Factor of r; a higher one gives more weight to the best encoder.

    Returns
    -------
    ndarray of float32, shape (n_members, n_vertices)
        Weights that sum to 1 at each vertex.

    References
    ----------
    Adeli et al. (2025), Transformer brain encoders explain human high-level visual responses,
    arXiv:2505.17329: softmax of 40 times the validation r per vertex.
    """
    z = temperature * np.nan_to_num(np.asarray(scores, np.float64), nan=-1.0)
    e = np.exp(z - z.max(0))
    return (e / e.sum(0)).astype(np.float32)


def query_masks(
    hemisphere: np.ndarray, rois: Mapping[str, np.ndarray]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the vertices that each query reads out.

    Parameters
    ----------
    hemisphere : ndarray of int, shape (n_vertices,)
        0 = left, 1 = right.
    rois : mapping of str to ndarray of bool, shape (n_vertices,)
        Regions that get a query in each hemisphere in which they have vertices; they may overlap.
        Vertices outside all regions belong to a query "rest". An empty mapping gives one query per
        hemisphere, named "all".

    Returns
    -------
    names : tuple of str
        Names of the queries, e.g. ``"left:V1"``.
    masks : ndarray of bool, shape (n_queries, n_vertices)
        Every vertex belongs to at least one query.
    """
    side = np.asarray(hemisphere)
    taken = (
        np.any([np.asarray(m, bool) for m in rois.values()], axis=0)
        if rois
        else np.zeros(len(side), bool)
    )
    regions = {
        **{k: np.asarray(m, bool) for k, m in rois.items()},
        ("rest" if rois else "all"): ~taken,
    }
    masks = {f"{SIDES[s]}:{k}": m & (side == s) for s in (0, 1) for k, m in regions.items()}
    names = tuple(k for k, m in masks.items() if m.any())
    return names, np.stack([masks[k] for k in names])


def sine_positions(grid: tuple[int, int], width: int, temperature: float = 10000.0) -> Tensor:
    """Return fixed two-dimensional position codes made of sines and cosines.

    The first half of the width codes the row and the second half the column; each coordinate is
    scaled to 2 pi over the grid.

    Parameters
    ----------
    grid : tuple of int
        Rows and columns of the patches.
    width : int
        Width of the code; divisible by 4.
    temperature : float, default 10000
        Base of the geometric series of wavelengths.

    Returns
    -------
    Tensor, shape (rows * columns, width)

    Raises
    ------
    ConfigError
        If the width is not divisible by 4.

    References
    ----------
    Carion et al. (2020), End-to-end object detection with transformers (DETR), ECCV.
    """
    require(
        width % 4 == 0,
        ConfigError,
        "a width divisible by 4",
        width,
        f"use a width of {width + -width % 4}",
    )
    half = width // 2
    scale = temperature ** (2 * (torch.arange(half) // 2) / half)

    def axis(n: int) -> Tensor:
        angle = (torch.arange(1, n + 1) / n * 2 * math.pi)[:, None] / scale
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1)

    rows, columns = axis(grid[0]), axis(grid[1])
    return torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], 1)


class GroupedReadout(nn.Module):
    """Read responses out of masked queries, computing each vertex once.

    ``out[v] = (sum_r m[r, v] q_r) . w_v + (sum_r m[r, v]) b_v``. This equals reading every vertex
    out of every query and masking afterwards, but vertices that share their queries are read out
    together from the sum of those queries.

    Parameters
    ----------
    masks : ndarray of bool, shape (R, V)
        Vertices that each query reads out, from `query_masks`.
    width : int
        Width E of the queries.

    Raises
    ------
    DataError
        If a vertex belongs to no query.
    """

    def __init__(self, *, masks: np.ndarray, width: int) -> None:
        super().__init__()
        masks = np.asarray(masks, bool)
        if masks.ndim != 2 or not masks.any(0).all():
            raise DataError(
                message(
                    "every vertex in at least one query's mask",
                    f"{int((~masks.any(0)).sum()) if masks.ndim == 2 else masks.shape} without",
                    "use query_masks, which adds a query for the rest",
                )
            )
        patterns, group = np.unique(masks, axis=1, return_inverse=True)
        order = np.argsort(group.ravel(), kind="stable")
        sizes = np.bincount(group.ravel())
        self.register_buffer("mixing_GR", torch.from_numpy(patterns.T.astype(np.float32)))
        self.register_buffer("inverse_V", torch.from_numpy(np.argsort(order)))
        self.register_buffer("order_V", torch.from_numpy(order))
        bound = 1 / math.sqrt(width)
        # one parameter per group: the gradient of a slice of one large weight has the full size
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.empty(n, width).uniform_(-bound, bound)) for n in sizes]
        )
        self.bias_V = nn.Parameter(torch.zeros(masks.shape[1]))
        self.register_buffer("count_V", torch.from_numpy(masks.sum(0).astype(np.float32)))

    def forward(self, queries_BRE: Tensor) -> Tensor:
        """Return responses, shape (B, V), in the order of the masks' vertices."""
        mixed_GBE = torch.einsum("gr,bre->gbe", self.mixing_GR.to(queries_BRE.dtype), queries_BRE)
        parts = [F.linear(m, w) for m, w in zip(mixed_GBE.unbind(0), self.weights)]
        return torch.cat(parts, 1).index_select(1, self.inverse_V) + self.count_V * self.bias_V

    def weight(self) -> Tensor:
        """Return all weights in the order of the vertices, shape (V, E)."""
        return torch.cat(list(self.weights), 0)[self.inverse_V]


class ROIQueryEncoder(nn.Module):
    """Predict responses by cross-attention of one learned query per region and hemisphere.

    Parameters
    ----------
    masks : ndarray of bool, shape (R, V)
        Vertices that each query reads out, from `query_masks`.
    token_width : int
        Width D of the backbone's tokens (times the number of blocks, if several are joined).
    grid : tuple of int
        Rows and columns of the patches.
    width : int, optional
        Model width E; default D. If it differs from D, tokens are first projected linearly.
    n_heads : int, default 16
        Number of attention heads; divides E.
    ffn_width : int, default 1024
        Hidden width of the feed-forward block.
    dropout : float, default 0.1
        Dropout rate of the attention weights, of both branches and inside the feed-forward block.

    Raises
    ------
    ConfigError
        If the sizes do not fit each other.

    Notes
    -----
    Self-attention among queries is left out, as in Adeli et al. (2025): with one layer and zero
    input it gives every query the same vector. Queries do not depend on the image, so that they are
    projected once per batch.

    References
    ----------
    Adeli, Minni & Kriegeskorte (2023), Predicting brain activity using transformers, bioRxiv.

    Adeli et al. (2025), Transformer brain encoders explain human high-level visual responses,
    arXiv:2505.17329: 16 heads, feed-forward width 1024, dropout 0.1.
    """

    def __init__(
        self,
        *,
        masks: np.ndarray,
        token_width: int,
        grid: tuple[int, int],
        width: int | None = None,
        n_heads: int = 16,
        ffn_width: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.sizes = {
            "token_width": token_width,
            "grid": list(grid),
            "width": width,
            "n_heads": n_heads,
            "ffn_width": ffn_width,
            "dropout": dropout,
        }
        width = width or token_width
        multiple = math.lcm(4, max(1, n_heads))
        require(
            n_heads >= 1 and width % multiple == 0,
            ConfigError,
            "a width divisible by 4 and by the number of heads",
            f"{width} and {n_heads}",
            f"set width={width + -width % multiple} in the EncoderConfig"
            if n_heads >= 1
            else "set n_heads to 1 or more in the EncoderConfig",
        )
        self.n_heads, self.dropout, self.grid = n_heads, dropout, tuple(grid)
        self.project = nn.Identity() if width == token_width else nn.Linear(token_width, width)
        self.queries_RE = nn.Parameter(torch.randn(len(masks), width))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        for linear in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(linear.weight)
        self.norm_ffn, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn_width, width)
        )
        self.drop = nn.Dropout(dropout)
        self.readout = GroupedReadout(masks=masks, width=width)
        self.register_buffer("positions_PE", sine_positions(self.grid, width), persistent=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)

    def _queries_keys(self, patches_BPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        require(
            patches_BPD.ndim == 3 and patches_BPD.shape[1] == len(self.positions_PE),
            DataError,
            f"patches of shape (B, {len(self.positions_PE)}, D) for a grid of {self.grid}",
            tuple(patches_BPD.shape),
            "use the image size and kind of tokens that the encoder was trained on",
        )
        tokens_BPE = self.project(patches_BPD)
        q_HRK = self._heads(self.q(self.queries_RE))
        k_BHPK = self._heads(self.k(tokens_BPE + self.positions_PE))
        return q_HRK.expand(len(patches_BPD), -1, -1, -1), k_BHPK, tokens_BPE

    def tokens(self, patches_BPD: Tensor) -> Tensor:
        """Return the output of each query before the readout, shape (B, R, E)."""
        q, k, tokens_BPE = self._queries_keys(patches_BPD)
        v = self._heads(self.v(tokens_BPE))
        mixed = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        x_BRE = self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        x_BRE = x_BRE + self.drop(self.ffn(self.norm_ffn(x_BRE)))
        return self.norm_out(x_BRE)

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return predicted responses, shape (B, V).

        Raises
        ------
        DataError
            If the number of patches is not that of the grid.
        """
        return self.readout(self.tokens(patches_BPD))

    def attention(self, patches_BPD: Tensor) -> Tensor:
        """Return the attention of each query and head over the patches.

        Parameters
        ----------
        patches_BPD : Tensor, shape (B, P, D)
            Patch tokens.

        Returns
        -------
        Tensor, shape (B, R, H, P)
            Weights that sum to 1 over the patches.
        """
        q, k, _ = self._queries_keys(patches_BPD)
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1).transpose(1, 2)

    def describe(self) -> dict[str, object]:
        """Return the type and sizes; `build_encoder` derives the masks from the state dict."""
        return {"type": "roi_query", **self.sizes}


def build_encoder(described: Mapping, state: Mapping[str, Tensor]) -> nn.Module:
    """Build the encoder that a description and a state dict belong to, with its weights.

    Parameters
    ----------
    described : mapping
        Result of the encoder's `describe`: its type, one of `KINDS`, and its sizes.
    state : mapping of str to Tensor
        State dict of the encoder. Masks, receptive fields and numbers of vertices are read off it.

    Returns
    -------
    nn.Module
        The encoder, on the CPU.
    """
    sizes = {k: v for k, v in described.items() if k not in ("type", "encoder", "members")}
    match described["type"]:
        case "linear":
            encoder = LinearEncoder(**sizes)
        case "roi_query":
            encoder = ROIQueryEncoder(masks=_readout_masks(state), **sizes)
        case "retinotopic":
            encoder = RetinotopicEncoder(
                fields=state["fields_C3"].clone(),
                choice=state["choice_V"].clone(),
                projection=state["projection_DF"].clone(),
                coef=state["coef_VF"].clone(),
                intercept=state["intercept_V"].clone(),
                grid=tuple(sizes["grid"]),
            )
        case "scaled":
            encoder = ScaledEncoder(
                encoder=build_encoder(described["encoder"], _part(state, "encoder.")),
                mean=state["mean_V"].clone(),
                scale=state["scale_V"].clone(),
            )
        case _:
            members = [
                build_encoder(member, _part(state, f"members.{i}."))
                for i, member in enumerate(described["members"])
            ]
            encoder = EnsembleEncoder(members=members, weights=state["weights_MV"].clone())
    encoder.load_state_dict(dict(state))
    return encoder


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _readout_masks(state: Mapping[str, Tensor]) -> np.ndarray:
    """Return the masks (R, V) that the state of a `ROIQueryEncoder` was trained with."""
    mixing_GR = state["readout.mixing_GR"].bool()
    counts = [len(state[f"readout.weights.{g}"]) for g in range(len(mixing_GR))]
    grouped = mixing_GR.repeat_interleave(torch.tensor(counts), 0)
    return grouped[state["readout.inverse_V"]].T.numpy()
