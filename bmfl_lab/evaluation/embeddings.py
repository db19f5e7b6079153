"""Decoding of image embeddings from responses, scored by cosine, identification and retrieval.

Shapes: n stimuli, V vertices, D width of the embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError, DataError, require, require_known
from bmfl_lab.evaluation.decoding import Identification, identify
from bmfl_lab.evaluation.roi_tokens import RoiTokenFit, fit_roi_tokens
from bmfl_lab.metrics.correlation import mean_pearson, pearson
from bmfl_lab.metrics.noise import ceiling_from_repeats
from bmfl_lab.metrics.statistics import Interval, accuracy_interval, bootstrap_mean
from bmfl_lab.models.ridge import DEFAULT_ALPHAS, RidgeFit, fit_ridge
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import rng

DECODERS = ("ridge", "roi_tokens")


def _same_length(left: np.ndarray, right: np.ndarray) -> None:
    require(
        left.ndim == 2 and right.ndim == 2 and len(left) == len(right),
        DataError,
        "two arrays with one row per stimulus",
        f"shapes {left.shape} and {right.shape}",
        "give the embedding of each stimulus, in the order of the responses",
    )


@dataclass(frozen=True)
class Decoder:
    """Decode embeddings from the responses of one subject; made by `fit_decoder`.

    Parameters
    ----------
    fit : RidgeFit or RoiTokenFit
        Map from standardised responses to embeddings.
    mean, scale : ndarray of float32, shape (V,)
        Mean and standard deviation of each vertex over the training stimuli.
    centre : ndarray of float32, shape (D,)
        Mean embedding of the training stimuli.
    n_train : int
        Number of training stimuli.
    """

    fit: RidgeFit | RoiTokenFit
    mean: np.ndarray
    scale: np.ndarray
    centre: np.ndarray
    n_train: int

    def predict(self, responses: np.ndarray) -> np.ndarray:
        """Decode each response by itself, whatever other responses stand beside it.

        Parameters
        ----------
        responses : ndarray, shape (n, V)
            Responses of the subject at the vertices of the fit.

        Returns
        -------
        ndarray of float32, shape (n, D)

        Raises
        ------
        DataError
            If the number of vertices differs.
        """
        responses = np.asarray(responses, np.float32)
        require(
            responses.ndim == 2 and responses.shape[1] == len(self.mean),
            DataError,
            f"responses of shape (n, {len(self.mean)})",
            responses.shape,
            "select the vertices on which the decoder was fitted",
        )
        return self.fit.predict((responses - self.mean) / self.scale)


def fit_decoder(
    responses: np.ndarray,
    embeddings: np.ndarray,
    *,
    decoder: str = "ridge",
    atlas: Atlas | None = None,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    n_folds: int = 5,
    shuffled: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> Decoder:
    """Fit a decoder from the responses of one subject to the embeddings of the images.

    Parameters
    ----------
    responses : ndarray, shape (n, V)
        Responses to the training stimuli.
    embeddings : ndarray, shape (n, D)
        Embeddings of the same stimuli, e.g. class tokens of a backbone.
    decoder : {"ridge", "roi_tokens"}, default "ridge"
        "ridge" is linear; "roi_tokens" is a small transformer over one token per ROI, see
        `fit_roi_tokens`.
    atlas : Atlas, optional
        ROIs of the V vertices; needed by "roi_tokens".
    alphas : sequence of float, default 19 values from 0.1 to 1e8
        Penalties of the ridge to choose from; each dimension has its own.
    n_folds : int, default 5
        Folds of the cross-validation that chooses the penalties.
    shuffled : bool, default False
        Pair each response with the embedding of another stimulus, as a control.
    seed : int, default 0
        Seed of that pairing, and of the training of "roi_tokens".
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device that trains "roi_tokens".

    Returns
    -------
    Decoder

    Raises
    ------
    DataError
        If numbers of stimuli differ, there are fewer training stimuli than dimensions, or the atlas
        has another number of vertices.
    ConfigError
        If the decoder is unknown, or "roi_tokens" has no atlas.

    Notes
    -----
    Scaling is fitted on the training stimuli alone. That dimensions may not outnumber training
    stimuli is our choice.

    References
    ----------
    Ridge regression from fMRI to embeddings per subject: Takagi & Nishimoto (2023), CVPR; Ozcelik &
    VanRullen (2023), Scientific Reports 13:15666 (Brain-Diffuser).
    """
    responses, embeddings = np.asarray(responses, np.float32), np.asarray(embeddings, np.float32)
    _same_length(responses, embeddings)
    require_known(decoder, DECODERS, ConfigError, "a decoder")
    require(
        decoder == "ridge" or atlas is not None,
        ConfigError,
        "an atlas for the tokens of the ROIs",
        "none",
        "pass atlas=subject.atlas, or use decoder='ridge'",
    )
    require(
        len(embeddings) > embeddings.shape[1],
        DataError,
        f"more training trials than the {embeddings.shape[1]} dimensions of the embedding",
        f"{len(embeddings)} trials",
        "measure more, or reduce the embedding to fewer principal components",
    )
    if shuffled:
        # a shift along a random order moves every embedding to another stimulus
        order = rng(seed, "shuffled decoding").permutation(len(embeddings))
        embeddings = embeddings[order[np.argsort(np.roll(order, 1))]]
    mean, spread = responses.mean(0), responses.std(0)
    scale = np.where(spread > 1e-6, spread, 1).astype(np.float32)
    if decoder == "roi_tokens":
        options = {"seed": seed, "device": device}
        tokens = fit_roi_tokens((responses - mean) / scale, embeddings, atlas, **options)
        return Decoder(tokens, mean, scale, embeddings.mean(0), len(responses))
    with warnings.catch_warnings():
        # responses may say nothing about a dimension; then no penalty is best
        warnings.filterwarnings("ignore", message="expected at most 5%")
        fit = fit_ridge((responses - mean) / scale, embeddings, alphas, n_folds)
    return Decoder(fit, mean, scale, embeddings.mean(0), len(responses))


@dataclass(frozen=True)
class DecodingScore:
    """Hold how well embeddings were decoded.

    Parameters
    ----------
    cosine : Interval
        Cosine of decoded and true embeddings around the training mean; 0 by chance.
    identification : Identification
        Two-way identification (chance 0.5) and retrieval among all test images.
    retrieval : dict of int to Interval
        Share of images found among n images, by n; chance is 1 / n.
    dimension_r : ndarray, shape (D,)
        Correlation over test images of each decoded with its true dimension; 0 by chance.
    r_low, r_high : float or None
        95 % bootstrap interval over images of its mean over dimensions.
    """

    cosine: Interval
    identification: Identification
    retrieval: dict[int, Interval]
    dimension_r: np.ndarray
    r_low: float | None
    r_high: float | None


def score_embeddings(
    decoded: np.ndarray,
    embeddings: np.ndarray,
    centre: np.ndarray,
    *,
    ways: Sequence[int] = (2, 10, 50),
    transductive: bool = False,
    n_boot: int = 1000,
    seed: int = 0,
) -> DecodingScore:
    """Score decoded embeddings of test images, of which no statistic may have been used.

    Parameters
    ----------
    decoded, embeddings : ndarray, shape (n, D)
        Decoded and true embeddings of the same test images.
    centre : ndarray, shape (D,)
        Mean embedding of the training images, which is subtracted from both.
    ways : sequence of int, default (2, 10, 50)
        Numbers of images to retrieve from, each from 2 to n.
    transductive : bool, default False
        Whether the predictions were scaled with statistics of the test images; such are refused.
    n_boot : int, default 1000
        Bootstrap resamples of the test images.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    DecodingScore

    Raises
    ------
    DataError
        If shapes differ, there are fewer test images than ways, the predictions are marked
        transductive, or in most dimensions their mean over these images is 0 or the training mean
        to a thousandth of a standard deviation, which only centring on these images does.

    Notes
    -----
    Retrieval among n images is the mean over all sets of n - 1 other test images, computed from the
    rank of the own image and not drawn. Candidates are compared by Pearson correlation.
    """
    decoded, embeddings = np.asarray(decoded, np.float64), np.asarray(embeddings, np.float64)
    _same_length(decoded, embeddings)
    n = len(decoded)
    centre = np.asarray(centre, np.float64)
    offset = np.minimum(np.abs(decoded.mean(0)), np.abs(decoded.mean(0) - centre))
    centred = np.mean(offset < 1e-3 * decoded.std(0)) > 0.5
    require(
        not (transductive or centred),
        DataError,
        "predictions that use no statistic of the test images",
        "predictions z-scored over the test images",
        "scale with the training images, as Decoder.predict does",
    )
    require(
        ways and all(2 <= w <= n for w in ways),
        DataError,
        f"2 to {n} images to retrieve from, which is the number of test images",
        tuple(ways),
        "choose ways in this range, or test more images",
    )
    decoded, embeddings = decoded - centre, embeddings - centre
    found = identify(decoded, embeddings, n_boot=n_boot, seed=seed)
    sizes = np.linalg.norm(decoded, axis=1) * np.linalg.norm(embeddings, axis=1)
    cosine = (decoded * embeddings).sum(1) / np.maximum(sizes, 1e-12)
    beaten = np.floor(found.per_stimulus * (n - 1) + 1e-9)
    retrieval = {w: bootstrap_mean(_retrieved(beaten, w), n_boot=n_boot, seed=seed) for w in ways}
    return DecodingScore(
        bootstrap_mean(cosine, n_boot=n_boot, seed=seed),
        found,
        retrieval,
        np.asarray(pearson(embeddings, decoded)),
        *mean_pearson(embeddings, decoded, n_boot, seed)[1:],
    )


def _retrieved(beaten: np.ndarray, ways: int) -> np.ndarray:
    """Return the probability that all of `ways` - 1 random other images are beaten, (n,)."""
    share, n = np.ones(len(beaten)), len(beaten)
    for k in range(ways - 1):
        share *= np.maximum(beaten - k, 0) / (n - 1 - k)
    return share


def decoding_ceiling(decoder: Decoder, repeats: np.ndarray) -> np.ndarray:
    """Return the highest correlation that noise in the responses allows this decoder.

    Parameters
    ----------
    decoder : Decoder
        Fitted decoder.
    repeats : ndarray, shape (n, n_repeats, V)
        Single presentations of the test stimuli, two or more.

    Returns
    -------
    ndarray of float32, shape (D,)
        Square root of the reliability of each decoded dimension when repeats are averaged.

    Raises
    ------
    DataError
        If no stimulus has two repeats.

    Notes
    -----
    A decoded dimension cannot correlate with anything better than with its own noiseless value. The
    ceiling is that of this decoder; another one may weigh the vertices with less noise.
    """
    n, k, v = np.shape(repeats)
    flat = np.asarray(repeats, np.float32).reshape(n * k, v)
    seen = np.isfinite(flat).all(1)
    decoded = np.full((n * k, len(decoder.centre)), np.nan, np.float32)
    decoded[seen] = decoder.predict(flat[seen])
    return np.sqrt(ceiling_from_repeats(decoded.reshape(n, k, -1)))


TextTower = Callable[[Sequence[str]], np.ndarray]
"""Function of C texts that returns their embeddings, (C, D)."""


def retrieve_names(
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    text: np.ndarray | TextTower,
    centre: np.ndarray,
    *,
    k: int = 1,
) -> tuple[Interval, float]:
    """Find the class name or caption of each image by the embedding of the text.

    Parameters
    ----------
    embeddings : ndarray, shape (n, D)
        Decoded embeddings, or true ones: what these reach is the ceiling of the text tower.
    labels : ndarray of int, shape (n,)
        Index of the right name.
    names : sequence of str, length C
        Names or captions to choose from, two or more.
    text : callable or ndarray, shape (C, D)
        Text tower of the backbone, such as that of CLIP or SigLIP, or the embeddings that it
        returned for `names`.
    centre : ndarray, shape (D,)
        Mean embedding of the training images.
    k : int, default 1
        A name is found if it is among the k most similar ones.

    Returns
    -------
    found : Interval
        Share of images whose name is found, with a 95 % interval.
    chance : float
        Share by chance, k / C.

    Raises
    ------
    DataError
        If the text embeddings have another width or number, a label is no index of a name, or there
        are fewer than two names.

    Notes
    -----
    Similarity is the cosine after images are centred on the training mean and texts on the mean of
    all names, which takes out the distance between the two kinds of embeddings (our choice).
    """
    embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
    require(
        len(names) >= 2 and 1 <= k < len(names),
        DataError,
        "two or more names, and k below their number",
        f"{len(names)} names and k={k}",
        "name more classes to choose from, or lower k",
    )
    words = np.asarray(text(list(names)) if callable(text) else text, np.float64)
    require(
        words.shape == (len(names), embeddings.shape[1]),
        DataError,
        f"text embeddings of shape ({len(names)}, {embeddings.shape[1]}), one per name and as wide "
        "as those of the images",
        f"shape {words.shape}",
        "use the text tower of the same model, after its projection",
    )
    require(
        labels.shape == (len(embeddings),) and np.isin(labels, np.arange(len(names))).all(),
        DataError,
        f"one label from 0 to {len(names) - 1} per image",
        f"{len(labels)} labels, such as {labels[:3].tolist()}",
        "label the test images with the classes that are named",
    )
    images, words = embeddings - np.asarray(centre), words - words.mean(0)
    words = words / np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-12)
    order = np.argsort(-(images @ words.T), axis=1, kind="stable")[:, :k]
    hit = (order == labels[:, None]).any(1)
    return accuracy_interval(hit[None]), k / len(names)


def decoding_rows(
    score: DecodingScore, ceiling: np.ndarray | None = None, **fields
) -> list[MetricRow]:
    """Turn scores of decoded embeddings into metric rows.

    Parameters
    ----------
    score : DecodingScore
        Result of `score_embeddings`.
    ceiling : ndarray, shape (D,), optional
        Result of `decoding_ceiling`.
    **fields
        Other fields of `MetricRow`: ``split``, ``model``, ``subject``, ``roi``, ``notes``.

    Returns
    -------
    list of MetricRow
        ``decoding_cosine``, ``decoding_two_way``, ``decoding_retrieval_N`` for each N of `ways`,
        ``decoding_r`` (mean over dimensions) and ``decoding_r_ceiling``. Notes name the chance
        level.
    """
    shared = {"selection": "none", **fields, "n": score.identification.n}
    said, found = shared.pop("notes", ""), score.identification
    interval = score.cosine.method
    parts = [
        ("decoding_cosine", score.cosine, 0.0, "cosine"),
        (
            "decoding_two_way",
            Interval(found.two_way, found.two_way_low, found.two_way_high, found.n, 1, 0.95, ""),
            0.5,
            "fraction",
        ),
        *((f"decoding_retrieval_{w}", v, 1 / w, "fraction") for w, v in score.retrieval.items()),
    ]
    rows = [
        MetricRow(
            name,
            x.value,
            unit=unit,
            ci_low=x.low,
            ci_high=x.high,
            interval=interval,
            notes="; ".join(filter(None, (f"chance {chance:.4g}", said))),
            **shared,
        )
        for name, x, chance, unit in parts
    ]
    ends = {"ci_low": score.r_low, "ci_high": score.r_high, "interval": interval}
    parts = (("decoding_r", score.dimension_r, ends), ("decoding_r_ceiling", ceiling, {}))
    for name, values, more in parts:
        if values is not None and np.isfinite(values).any():
            notes = "; ".join(filter(None, ("chance 0" if more else "", said)))
            value = float(np.nanmean(values))
            rows.append(MetricRow(name, value, unit="r", notes=notes, **more, **shared))
    return rows
