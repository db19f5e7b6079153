"""Compute images, responses, lesions and attention of one study for the interactive widgets.

Shape suffixes: N images of a batch, C classes, H heads, L blocks, R regions, h and w rows and
columns of patches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from scipy.special import softmax

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.backbones.tokens import StoredTokens, extract_many
from bmfl_lab.data import StimulusSet, Study, Subject
from bmfl_lab.data.shifts import SHIFTS, shifted
from bmfl_lab.data.vertices import control_vertices
from bmfl_lab.errors import ConfigError, DataError, message, nearest, require
from bmfl_lab.evaluation.attention import (
    backbone_attention,
    brain_maps,
    query_names,
    query_weights,
    select_queries,
)
from bmfl_lab.evaluation.attention_checks import (
    check_backbone,
    check_brain_attention,
    check_roi_attention,
)
from bmfl_lab.evaluation.attention_outcomes import CheckRow
from bmfl_lab.metrics.classification import predictions
from bmfl_lab.metrics.statistics import accuracy_interval
from bmfl_lab.models.encoders import ROIQueryEncoder
from bmfl_lab.models.fusion import ImageSide
from bmfl_lab.models.lesion import LESION_KINDS, Lesion
from bmfl_lab.models.protocols import BrainEncoder, Classifier
from bmfl_lab.runtime import half_the_threads, rng
from bmfl_lab.training.context import load_spec
from bmfl_lab.training.fusion import TrainedFusion
from bmfl_lab.training.saved import OpenedStudy, open_models
from bmfl_lab.training.sources import EncoderSource
from bmfl_lab.training.trained_encoder import reads_backbone, shared_tokens

BACKBONE, ENCODER = "backbone: CLS over patches", "encoder: ROI query over patches"
CONSULTED, LOOKED = "fusion: image over ROIs", "fusion: brain over patches"
# three to five small results are kept per image; the larger results of a whole set must still be
# there after some fifty images
_CACHE_SIZE = 256

T = TypeVar("T")


class _Place(NamedTuple):
    """One image of a set, under a shift or none; the severity is 0 without a shift."""

    name: str
    index: int
    shift: str
    severity: int


class _SetBatch(NamedTuple):
    """Tokens, responses and labels of the images of a set, and the image side of the fusion."""

    cls: torch.Tensor
    patches: torch.Tensor
    response: np.ndarray | None
    labels: np.ndarray
    image_side: ImageSide | None


class Explorer:
    """Compute what the widgets show of one study and its trained models.

    Parameters
    ----------
    study : Study
        Images, and the subject whose cortex is shown.
    models : mapping of str to model or list of models, or one model
        Each has ``logits(stimuli)``; `TrainedFusion` models can be lesioned and show attention. The
        first model of a list (one model per seed) is taken.
    encoder : TrainedEncoder, optional
        Encoder that predicts responses; by default the encoder of the first model that has one.
    store : FeatureStore, optional
        Store of the tokens; the one in the cache folder by default.
    subject : str, optional
        Name of the subject; the first one by default.
    n_batch : int, default 200
        Number of images per set for an accuracy under a lesion, spread evenly over the set.
    n_controls : int, default 2
        Number of random lesions outside a lesion, as its control; the images are divided among
        them.
    seed : int, default 0
        Seed of shifts and random lesions.
    device : str, default "cpu"
        Device of the backbone.

    Attributes
    ----------
    tested : str
        Labelled image set for tuning and accuracy: "test", or the first one; empty in a study
        without labels.

    Notes
    -----
    Nothing is computed before it is needed, and recent results are kept in memory. Tokens of whole
    sets come from the store; those of one shifted image are computed in one pass of the backbone.
    Images and sets run through the same `BMFL.classify` as training and evaluation.
    """

    def __init__(
        self,
        study: Study,
        models: Classifier | Mapping[str, Classifier | Sequence[Classifier]] | None = None,
        encoder: BrainEncoder | None = None,
        *,
        store: FeatureStore | None = None,
        subject: str | None = None,
        n_batch: int = 200,
        n_controls: int = 2,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.study, self.seed, self.device = study, seed, device
        self.n_batch, self.n_controls = n_batch, n_controls
        self._models = _by_name(models)
        encoders = (encoder, *(getattr(m, "encoder", None) for m in self._models.values()))
        self.encoder = next((e for e in encoders if e is not None), None)
        self.store = store if store is not None else FeatureStore()
        self.subject = study.subject(subject) if study.subjects else None
        self.atlas = getattr(self.encoder, "atlas", None) or getattr(self.subject, "atlas", None)
        self.models = tuple(self._models)
        self.shifts, self.lesions = tuple(SHIFTS.names()), LESION_KINDS
        labelled = [n for n, s in study.sets.items() if np.any(np.asarray(s.labels) >= 0)]
        self.tested = "test" if "test" in labelled else next(iter(labelled), "")
        named = study.sets.get("train" if "train" in study.sets else self.tested)
        self.class_names = () if named is None else named.class_names
        self.brain = "subject" if self.subject is None else f"subject {self.subject.name}"
        self.sets = (*study.sets, *(() if self.subject is None else (self.brain,)))
        self.ood = (*study.ood, *(f"{name} {severity}" for name, severity in study.shifts))
        self.title = study.name + (f" ({study.kind} responses)" if study.kind else "")
        self._cache: dict[Hashable, object] = {}

    @classmethod
    def open(
        cls,
        place: str | Path | Sequence[str | Path],
        study: Study | str | Path | None = None,
        *,
        store: FeatureStore | None = None,
        device: str = "cpu",
        **options: object,
    ) -> Explorer:
        """Return the explorer of the models that a run saved.

        Parameters
        ----------
        place, study, store, device
            See `bmfl_lab.training.open_models`.
        **options
            Further parameters of `Explorer`; the subject is that of the models' encoder by default.

        Raises
        ------
        ConfigError, CheckpointError, DataError
            See `bmfl_lab.training.open_models`.
        """
        opened = OpenedStudy(*open_models(place, study, store=store, device=device))
        if opened.study.subjects:
            options = {"subject": opened.subject().name, **options}
        return cls(opened.study, opened.models, store=store, device=device, **options)

    def __repr__(self) -> str:
        return f"Explorer({self.title!r}, models={list(self.models)}, encoder={self.encoder!r})"

    def _cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the result kept under `key`, or compute it; the least recently used is dropped."""
        if key in self._cache:
            value = self._cache.pop(key)
        else:
            with half_the_threads():
                value = compute()
        self._cache[key] = value
        while len(self._cache) > _CACHE_SIZE:
            self._cache.pop(next(iter(self._cache)))
        return value

    # --- images

    def stimuli(self, name: str) -> StimulusSet:
        """Return an image set of the study or the subject, or a shift of "test".

        Parameters
        ----------
        name : str
            One of ``sets``, or a shift and its severity, e.g. "masked 3".

        Raises
        ------
        DataError
            If there is no set of that name.
        """
        if name in self.study.sets:
            return self.study.sets[name]
        if self.subject is not None and name == self.brain:
            return self.subject.stimuli
        shift, _, severity = name.rpartition(" ")
        if shift in self.shifts and severity in "12345":
            return self._cached(
                ("set", name),
                lambda: shifted(self.study.set("test"), shift, int(severity), self.seed),
            )
        raise DataError(
            message(
                f"an image set of study {self.study.name!r}", repr(name), nearest(name, self.sets)
            )
        )

    def size(self, name: str) -> int:
        """Return the number of images of a set."""
        return len(self.stimuli(name))

    def label(self, name: str, index: int) -> int:
        """Return the class index of an image; -1 if it has no label."""
        stimuli = self.stimuli(name)
        return int(stimuli.labels[_checked(stimuli, index)])

    def _image(self, place: _Place) -> StimulusSet:
        """Return a set of one image."""
        stimuli = self.stimuli(place.name)
        single = stimuli.subset([_checked(stimuli, place.index)])
        return shifted(single, place.shift, place.severity, self.seed) if place.shift else single

    def image(self, name: str, index: int, shift: str = "", severity: int = 3) -> np.ndarray:
        """Return the pixels of an image after the resizing and cropping of the backbone.

        Parameters
        ----------
        name : str
            Image set, as in `stimuli`.
        index : int
            Position of the image in its set, from 0.
        shift : str, default ""
            Shift that is applied to the image; "" for none.
        severity : int, default 3
            Severity of the shift, 1 to 5.

        Returns
        -------
        ndarray of uint8, shape (S, S, 3)

        Raises
        ------
        DataError
            If the image cannot be read or the index lies outside the set.
        """
        place = _place(name, index, shift, severity)
        return self._cached(
            ("image", place), lambda: self.backbone.preprocess.crop(self._image(place).image(0))
        )

    @functools.cached_property
    def backbone(self) -> Backbone:
        """Backbone of the first model that has one, else of the encoder or the study."""
        for model in self._models.values():
            if hasattr(model, "backbone"):
                return model.backbone
        spec = getattr(self.encoder, "backbone", None) or self.study.backbone
        return load_spec(spec, self.device)

    @property
    def weights(self) -> str:
        """Name and source of the weights of the backbone, and of the encoder's if it differs."""
        found = [f"{self.backbone.name}, {self.backbone.weights_label}"]
        if getattr(self.encoder, "sources", ()) and not reads_backbone(self.encoder, self.backbone):
            read = [source["backbone"] for source in self.encoder.sources]
            found += [f"{b['name']}, {b['weights_label']} (brain encoder)" for b in read]
        return "; ".join(dict.fromkeys(found))

    # --- tokens

    def _set_tokens(self, kind: str, block: int, name: str) -> StoredTokens:
        return self._cached(
            ("set tokens", kind, block, name),
            lambda: self.store.get(self.backbone, self.stimuli(name), kind=kind, block=block),
        )

    def _reads_encoder(self, model: TrainedFusion) -> bool:
        """Return whether the responses that a model reads are those of the explorer's encoder."""
        source = model.source
        return isinstance(source, EncoderSource) and source.encoder is self.encoder

    def _image_tokens(self, kind: str, block: int, place: _Place) -> StoredTokens:
        """Return the tokens of one image, as the store keeps those of its set."""
        if place.shift or place.name not in self.study.sets:
            single = self._computed_tokens(kind, block, place)
            # the store keeps float16: an image must have the same result alone and in its set
            cls, patches = (a.astype(np.float16) for a in (single.cls, single.patches))
            return dataclasses.replace(single, cls=cls, patches=patches)
        index = _checked(self.stimuli(place.name), place.index)
        return _rows(self._set_tokens(kind, block, place.name), slice(index, index + 1))

    def _computed_tokens(self, kind: str, block: int, place: _Place) -> StoredTokens:
        """Return the tokens of one image from one pass, which serves all models and the encoder."""
        read = kind, block % self.backbone.n_blocks
        wanted = self._cached(("reads",), self._reads)
        if read not in wanted:
            wanted = (read,)
        tokens = self._cached(
            ("tokens", wanted, place),
            lambda: extract_many(self.backbone, self._image(place), wanted),
        )
        return tokens[wanted.index(read)]

    def _reads(self) -> tuple[tuple[str, int], ...]:
        """Return kind and block of all tokens of the backbone that models and encoder read."""
        own = [m.reads()[0] for m in self._models.values() if isinstance(m, TrainedFusion)]
        own += shared_tokens(self.backbone, self.encoder)
        return tuple(dict.fromkeys((kind, block % self.backbone.n_blocks) for kind, block in own))

    def _encoder_backbone(self) -> Backbone | None:
        """Return the explorer's backbone if the encoder reads it too; else it loads its own."""
        return self.backbone if reads_backbone(self.encoder, self.backbone) else None

    def _encoder_set(self, name: str) -> tuple[StoredTokens, ...]:
        return self._cached(
            ("encoder tokens", name),
            lambda: self._need_encoder().tokens(
                self.stimuli(name),
                store=self.store,
                backbone=self._encoder_backbone(),
                device=self.device,
            ),
        )

    def _encoder_image(self, place: _Place) -> tuple[StoredTokens, ...]:
        """Return the tokens of one image that the encoder reads, one entry per block."""
        encoder, backbone = self._need_encoder(), self._encoder_backbone()
        if not place.shift and place.name in self.study.sets:
            index = _checked(self.stimuli(place.name), place.index)
            rows = slice(index, index + 1)
            return tuple(_rows(stored, rows) for stored in self._encoder_set(place.name))
        sources = encoder.sources
        if backbone is not None and all(s["features"] == "tokens" for s in sources):
            return tuple(self._computed_tokens(s["kind"], s["block"], place) for s in sources)
        return self._cached(
            ("encoder tokens", place),
            lambda: encoder.tokens(self._image(place), backbone=backbone, device=self.device),
        )

    # --- responses

    def predicted(self, name: str, index: int, shift: str = "", severity: int = 3) -> np.ndarray:
        """Return the predicted response to an image.

        Parameters
        ----------
        name, index, shift, severity
            Image, as in `image`.

        Returns
        -------
        ndarray of float32, shape (V,)

        Raises
        ------
        ConfigError
            If there is no brain encoder.
        """
        encoder, place = self._need_encoder(), _place(name, index, shift, severity)
        if not place.shift and ("responses", place.name) in self._cache:
            index = _checked(self.stimuli(place.name), place.index)
            return self.all_predicted(place.name)[index]
        return self._cached(
            ("predicted", place),
            lambda: (
                encoder.predict(self._encoder_image(place), device=self.device)
                if encoder.sources
                else encoder.predict_stimuli(self._image(place))  # predicted elsewhere
            )[0],
        )

    def all_predicted(self, name: str) -> np.ndarray:
        """Return the predicted responses to a set of n images, float32 (n, V).

        Raises
        ------
        ConfigError
            If there is no brain encoder.
        """
        encoder = self._need_encoder()
        return self._cached(
            ("responses", name),
            lambda: (
                encoder.predict(self._encoder_set(name), device=self.device)
                if encoder.sources
                else encoder.predict_stimuli(self.stimuli(name))
            ),
        )

    def _predicted_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the predicted responses to some images of a set, float32 (len(rows), V)."""
        if ("responses", name) in self._cache or name not in self.study.sets:
            return self.all_predicted(name)[rows]
        stored = tuple(_rows(s, rows) for s in self._encoder_set(name))
        return self._need_encoder().predict(stored, device=self.device)

    def _need_encoder(self) -> BrainEncoder:
        require(
            self.encoder is not None,
            ConfigError,
            "a brain encoder",
            "none",
            "train one with train_brain_encoder and pass it to the Explorer",
        )
        return self.encoder

    def measured(self, index: int) -> np.ndarray:
        """Return the measured response of the subject to one of its images, float32 (V,).

        Raises
        ------
        DataError
            If the study has no subject, or the index lies outside its images.
        """
        subject = self._need_subject()
        response = subject.responses[_checked(subject.stimuli, index)]
        return np.asarray(response, dtype=np.float32)

    def _need_subject(self) -> Subject:
        require(
            self.subject is not None,
            DataError,
            f"a subject with responses in study {self.study.name!r}",
            "none",
            "load a study with responses",
        )
        return self.subject

    def accuracy(self) -> np.ndarray:
        """Return the encoder's validation r per vertex, float64 (V,); NaN where it is undefined.

        Raises
        ------
        ConfigError
            If there is no brain encoder.
        """
        return np.asarray(self._need_encoder().scores, dtype=np.float64)

    def ceiling(self) -> np.ndarray:
        """Return the noise ceiling per vertex, float64 (V,); NaN where it is undefined.

        It is the share of the variance of a vertex that the image determines, 0 to 1.

        Raises
        ------
        DataError
            If the study has no subject, or the subject no noise ceiling.
        """
        ceiling = self._need_subject().noise_ceiling
        require(
            ceiling is not None,
            DataError,
            f"a noise ceiling of {self.subject.name!r}",
            "none",
            "choose another map, or a subject with a noise ceiling",
        )
        return np.asarray(ceiling, dtype=np.float64)

    def mask(self, regions: Sequence[str]) -> np.ndarray:
        """Return the vertices of regions.

        Parameters
        ----------
        regions : sequence of str
            ROIs, groups of ROIs, or single vertices such as "vertex 12".

        Returns
        -------
        ndarray of bool, shape (V,)
            No vertex for an empty sequence.

        Raises
        ------
        ConfigError
            If a region is unknown or absent in this subject, or there is no cortex.
        """
        require(
            self.atlas is not None,
            ConfigError,
            "a cortex",
            "a study without responses",
            "load a study with responses",
        )
        if not len(regions):
            return np.zeros(self.atlas.n_vertices, dtype=bool)
        return self.atlas.select(regions)

    def tuning(self, vertices: np.ndarray, name: str = "") -> dict[str, np.ndarray]:
        """Return the mean predicted response of a region to each class, with its standard error.

        Parameters
        ----------
        vertices : ndarray of bool, shape (V,)
            Vertices of the region, which are averaged.
        name : str, optional
            Labelled set of n images; `tested` by default.

        Returns
        -------
        dict of str to ndarray
            ``mean`` and ``error`` (C,), NaN for a class without images; ``response`` (n,), the
            response to each image; ``best`` (12 at most), the positions of the images with the
            largest responses, largest first.

        Raises
        ------
        DataError
            If the study has no labelled images.
        """
        name = name or self.tested
        require(
            name,
            DataError,
            "labelled images for a tuning",
            f"none in study {self.study.name!r}",
            "load a study with an image set of classes",
        )
        response = self.all_predicted(name)[:, vertices].mean(1)
        labels = np.asarray(self.stimuli(name).labels)
        classes = [response[labels == c] for c in range(len(self.class_names))]
        mean = np.array([c.mean() if len(c) else np.nan for c in classes])
        error = np.array(
            [c.std(ddof=1) / np.sqrt(len(c)) if len(c) > 1 else np.nan for c in classes]
        )
        best = np.argsort(-response, kind="stable")
        return {"mean": mean, "error": error, "best": best[:12], "response": response}

    # --- models and lesions

    def _model(self, name: str, lesion: Lesion | None = None) -> Classifier:
        """Return a model by its name; for a lesion it must have a brain."""
        remedy = "train one with train_fusion and pass it to the Explorer"
        known = nearest(name, self.models) if self.models else remedy
        require(name in self._models, ConfigError, "a trained model", repr(name), known)
        fusions = [n for n in self.models if getattr(self._models[n], "source", None) is not None]
        require(
            lesion is None or name in fusions,
            ConfigError,
            "a model with a brain to lesion",
            repr(name),
            f"choose one of {', '.join(fusions)}" if fusions else remedy,
        )
        return self._models[name]

    def lesion(
        self, regions: Sequence[str], kind: str = "mean", strength: float = 1.0
    ) -> Lesion | None:
        """Return a lesion of regions.

        Parameters
        ----------
        regions : sequence of str
            Regions, as in `mask`.
        kind : str, default "mean"
            Kind of the lesion, one of ``lesions``.
        strength : float, default 1.0
            Strength from 0 (none) to 1 (full).

        Returns
        -------
        Lesion or None
            None without regions or with strength 0.
        """
        if not len(regions) or strength == 0:
            return None
        return Lesion(self.mask(regions), kind, strength, seed=self.seed)

    def random_lesions(self, lesion: Lesion) -> list[Lesion]:
        """Return lesions of random vertices outside a lesion, as its controls.

        Parameters
        ----------
        lesion : Lesion
            Lesion whose kind, strength and number of vertices are copied.

        Returns
        -------
        list of Lesion
            `n_controls` lesions with as many vertices in each hemisphere as `lesion` has, or all of
            those outside it where there are fewer. Empty if no vertex lies outside.
        """
        if lesion.mask.all():
            return []
        return [
            dataclasses.replace(
                lesion,
                mask=control_vertices(
                    self.atlas, lesion.mask, rng(self.seed, "random lesion", draw)
                )[1],
                seed=self.seed,
            )
            for draw in range(self.n_controls)
        ]

    def has_brain(self, model: str) -> bool:
        """Return whether a model reads responses, and so can be lesioned."""
        return getattr(self._model(model), "source", None) is not None

    def probabilities(
        self,
        model: str,
        name: str,
        index: int,
        shift: str = "",
        severity: int = 3,
        *,
        lesion: Lesion | None = None,
    ) -> np.ndarray:
        """Return the class probabilities of an image.

        Parameters
        ----------
        model : str
            Name of the model, one of ``models``.
        name, index, shift, severity
            Image, as in `image`.
        lesion : Lesion, optional
            Replaces the responses of some vertices.

        Returns
        -------
        ndarray of float64, shape (C,)

        Raises
        ------
        ConfigError
            If the model is unknown, or there is a lesion and the model has no brain.
        """
        place = _place(name, index, shift, severity)
        return self._cached(
            ("probabilities", model, place, _lesion_key(lesion)),
            lambda: softmax(
                np.asarray(self._classify(model, place, lesion)["logits"][0], dtype=np.float64)
            ),
        ).copy()

    def _classify(
        self, name: str, place: _Place, lesion: Lesion | None = None, weights: bool = False
    ) -> dict[str, np.ndarray]:
        """Return the logits of one image, and the attention weights of a fusion model."""
        model = self._model(name, lesion)
        if not isinstance(model, TrainedFusion):
            return {"logits": model.logits(self._image(place))}
        tokens, response = self._image_tokens(*model.reads()[0], place), None
        if self._reads_encoder(model):
            response = self.predicted(*place)[None]
        elif model.source is not None:
            key = ("model responses", model.name, place)
            response = self._cached(key, lambda: model.predict_responses(self._image(place)))
        out = model.classify(tokens.cls, tokens.patches, response, lesion, weights=weights)
        return {**out, "grid": tokens.grid}

    def batch_rows(self, name: str) -> np.ndarray:
        """Return the positions of the N images of a set that `batch` classifies, int64 (N,)."""
        n = self.size(name)
        return np.unique(np.linspace(0, n - 1, min(self.n_batch, n)).astype(int))

    def _set_batch(self, model: TrainedFusion, name: str) -> _SetBatch:
        """Return what is common to all lesions of a set; computed once, it makes a lesion quick."""
        stimuli, rows, response = self.stimuli(name), self.batch_rows(name), None
        stored = self._set_tokens(*model.reads()[0], name)
        if self._reads_encoder(model):
            response = self._predicted_rows(name, rows)
        elif model.source is not None:
            response = model.predict_responses(stimuli)[rows]
        cls, patches = (
            torch.from_numpy(np.asarray(a[rows], dtype=np.float32))
            for a in (stored.cls, stored.patches)
        )
        labels, image_side = np.asarray(stimuli.labels)[rows], model.image_side(cls, patches)
        return _SetBatch(cls, patches, response, labels, image_side)

    def _correct(
        self, name: str, images: str, lesion: Lesion | None = None, rows: slice = slice(None)
    ) -> np.ndarray:
        """Return which of some images of a batch are classified correctly, bool (N,).

        An image with a NaN among its logits counts as wrong.
        """
        model = self._model(name)

        def compute() -> np.ndarray:
            if not isinstance(model, TrainedFusion):
                stimuli = self.stimuli(images).subset(self.batch_rows(images))
                return predictions(model.logits(stimuli)) == np.asarray(stimuli.labels)
            batch = self._cached(
                ("batch", id(model), images), lambda: self._set_batch(model, images)
            )
            out = model.classify(
                batch.cls[rows],
                batch.patches[rows],
                None if batch.response is None else batch.response[rows],
                lesion,
                image_side=None if batch.image_side is None else batch.image_side.rows(rows),
            )
            return predictions(out["logits"]) == batch.labels[rows]

        return self._cached(("correct", name, images), compute) if lesion is None else compute()

    def batch(
        self, model: str, sets: Sequence[str], lesion: Lesion | None = None
    ) -> dict[str, np.ndarray]:
        """Return accuracy on image sets: intact, lesioned, and under lesions of other vertices.

        Parameters
        ----------
        model : str
            Name of the model, one of ``models``.
        sets : sequence of str
            Image sets, e.g. "test" and "masked 3".
        lesion : Lesion, optional
            None for the intact model alone.

        Returns
        -------
        dict of str to ndarray
            ``accuracy``, ``low`` and ``high`` (n_sets, 3), with the 95 % bootstrap interval over
            images; the columns are intact, lesioned and control, the last two NaN without a lesion.
            Each image of the control is classified under one of the random lesions, in turn. The
            control is NaN, too, if the lesion leaves no vertex.
            ``n_control``, the number of vertices of the control.
            ``n`` (n_sets,), the number of images; ``changed`` (n_sets, 2), how many images the
            lesion turns wrong, and right.

        Raises
        ------
        ConfigError
            If the model is unknown, or there is a lesion and the model has no brain.
        DataError
            If there is no set of that name.
        """
        self._model(model, lesion)
        sets = tuple(sets)
        key = ("table", model, sets, _lesion_key(lesion))
        return self._cached(key, lambda: self._accuracies(model, sets, lesion))

    def _accuracies(
        self, model: str, sets: tuple[str, ...], lesion: Lesion | None
    ) -> dict[str, np.ndarray]:
        table = {k: np.full((len(sets), 3), np.nan) for k in ("accuracy", "low", "high")}
        table["n"] = np.zeros(len(sets), dtype=int)
        table["changed"] = np.zeros((len(sets), 2), dtype=int)
        controls = [] if lesion is None else self.random_lesions(lesion)
        table["n_control"] = np.array(controls[0].mask.sum() if controls else 0)
        for row, name in enumerate(sets):
            intact = self._correct(model, name)
            columns = [intact]
            if lesion is not None:
                lesioned, control = self._correct(model, name, lesion), np.zeros_like(intact)
                for draw, random in enumerate(controls):
                    rows = slice(draw, None, len(controls))
                    control[rows] = self._correct(model, name, random, rows)
                columns += [lesioned, control] if controls else [lesioned]
                table["changed"][row] = (intact & ~lesioned).sum(), (~intact & lesioned).sum()
            table["n"][row] = len(intact)
            for column, correct in enumerate(columns):
                found = accuracy_interval(correct)
                values = found.value, found.low, found.high
                for key, value in zip(("accuracy", "low", "high"), values):
                    table[key][row, column] = np.nan if value is None else value
        return table

    # --- attention

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the attention maps that the backbone, the encoder and the models can show."""
        names = [BACKBONE]
        if self._query_module() is not None:
            names.append(ENCODER)
        if any(map(_has_fusion, self._models.values())):
            names += [CONSULTED, LOOKED]
        return tuple(names)

    def _query_module(self) -> ROIQueryEncoder | None:
        """Return the ROI-query transformer inside the encoder; an ensemble has none of its own."""
        return self.encoder.query_module() if hasattr(self.encoder, "query_module") else None

    def map_models(self, source: str) -> tuple[str, ...]:
        """Return the names of the models that can show an attention source.

        All models can show the attention of the backbone and of the encoder.
        """
        by_all = source not in (CONSULTED, LOOKED)
        return tuple(k for k, m in self._models.items() if by_all or _has_fusion(m))

    def map_choices(self, source: str, model: str = "") -> dict[str, int | tuple[str, ...]]:
        """Return what can be chosen for an attention source.

        Parameters
        ----------
        source : str
            One of `sources`.
        model : str, optional
            Model whose cross-attention is shown; the first one by default.

        Returns
        -------
        dict
            ``n_heads`` and ``n_blocks`` (int), and ``regions``, the names of the queries of the
            encoder (empty for other sources).

        Raises
        ------
        ConfigError
            If the source is unknown, or the explorer's models cannot show it.
        """
        if source == BACKBONE:
            heads, blocks = self.backbone.n_heads, self.backbone.n_blocks
            return {"n_heads": heads, "n_blocks": blocks, "regions": ()}
        if source == ENCODER:
            module = self._query_module()
            require(
                module is not None,
                ConfigError,
                "a ROI-query encoder",
                "another kind or none",
                "train one with presets(..., encoder='roi_query')",
            )
            names = self._cached(("query names",), lambda: query_names(self.encoder))
            return {"n_heads": module.n_heads, "n_blocks": 1, "regions": names}
        if source in (CONSULTED, LOOKED):
            _, fusion = self._fusion(model)
            return {"n_heads": fusion.config.n_heads, "n_blocks": 1, "regions": ()}
        raise ConfigError(
            message("an attention source", repr(source), nearest(source, self.sources))
        )

    def _fusion(self, name: str) -> tuple[str, TrainedFusion]:
        """Return a model with cross-attention and its name; the first model by default."""
        name = name or next(iter(self.models), "")
        model = self._model(name)
        require(
            _has_fusion(model),
            ConfigError,
            "a model with cross-attention",
            f"{name!r}, which has none",
            "choose a model that was trained with head='fusion'",
        )
        return name, model

    def attention(
        self,
        source: str,
        name: str,
        index: int,
        shift: str = "",
        severity: int = 3,
        *,
        model: str = "",
        block: int = -1,
        head: int = -1,
        region: str = "",
    ) -> dict[str, np.ndarray | tuple[str, ...]]:
        """Return the attention of one image.

        Parameters
        ----------
        source : str
            One of `sources`.
        name, index, shift, severity
            Image, as in `image`.
        model : str, optional
            Model whose cross-attention is shown; the first one by default.
        block : int, default -1
            Block of the backbone.
        head : int, default -1
            Head, from 0; -1 for the mean over heads.
        region : str, optional
            Query of the encoder, e.g. "left:V1"; the first one by default.

        Returns
        -------
        dict
            ``map`` (h, w), which sums to the share of attention that patches receive; or, for
            "fusion: image over ROIs", ``weights`` (R,) of the image's CLS token, which sum to 1,
            and ``regions``, the R names of the brain tokens. The functions of
            `bmfl_lab.evaluation.attention` return the same numbers for a whole set.

        Raises
        ------
        ConfigError
            If the source, head, block or region does not exist in the explorer's models.
        """
        choices, place = self.map_choices(source, model), _place(name, index, shift, severity)
        n_heads, regions = choices["n_heads"], choices["regions"]
        require(
            -1 <= head < n_heads,
            ConfigError,
            f"a head from 0 to {n_heads - 1}, or -1",
            head,
            "choose one of these heads, or -1 for their mean",
        )
        if source == BACKBONE:
            # one pass computes the maps of all blocks
            maps = self._cached(
                ("attention", source, place),
                lambda: backbone_attention(self.backbone, self._image(place), normalise=False)[0],
            )
            return {"map": _select_head(maps[self.backbone.indices((block,))[0]], head)}
        if source == ENCODER:
            if region and region not in regions:
                raise ConfigError(
                    message(
                        "a region with a query in this subject",
                        repr(region),
                        nearest(region, regions),
                    )
                )
            maps = self._cached(
                ("attention", source, place),
                lambda: query_weights(self.encoder, self._encoder_image(place))[0],
            )
            return {"map": _select_head(maps[regions.index(region) if region else 0], head)}
        model, fusion = self._fusion(model)
        # one forward pass computes both directions
        out = self._cached(
            ("attention", "fusion", model, place),
            lambda: self._classify(model, place, weights=True),
        )
        if source == LOOKED:
            return {"map": _select_head(brain_maps(out)[0], head)}
        weights = _select_head(select_queries(out["vb"], "cls")[0, :, 0], head)
        return {"weights": weights, "regions": tuple(fusion.module.brain.tokeniser.names)}

    def patch_effect(
        self,
        name: str,
        index: int,
        shift: str = "",
        severity: int = 3,
        *,
        patch: tuple[int, int],
        grid: tuple[int, int],
    ) -> np.ndarray:
        """Return how much of the predicted response of each vertex comes from one patch.

        Parameters
        ----------
        name, index, shift, severity
            Image, as in `image`.
        patch : (int, int)
            Row and column of the patch, from 0.
        grid : (int, int)
            Rows and columns of patches in the image.

        Returns
        -------
        ndarray of float, shape (V,)
            Response to the image minus the response to the image whose patch is filled with the
            mean colour of the image, z.

        Raises
        ------
        ConfigError
            If there is no brain encoder.
        DataError
            If the patch lies outside the grid.
        """
        require(
            0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1],
            DataError,
            f"a patch within a grid of {grid[0]} rows and {grid[1]} columns",
            patch,
            "choose a patch of this grid",
        )
        whole = self.image(name, index, shift, severity)
        rows, columns = (
            slice(at * size // n, (at + 1) * size // n)
            for at, n, size in zip(patch, grid, whole.shape)
        )
        filled = whole.copy()
        filled[rows, columns] = whole.mean((0, 1)).round()
        pair, encoder = (whole, filled), self._need_encoder()
        stimuli = StimulusSet(
            "patch", np.array(["whole", "filled"]), pair.__getitem__, str, np.full(2, -1)
        )
        key = ("patch effect", _place(name, index, shift, severity), patch, grid)

        def compute() -> np.ndarray:
            backbone = self._encoder_backbone()
            tokens = encoder.tokens(stimuli, backbone=backbone, device=self.device)
            one, other = encoder.predict(tokens, device=self.device)
            return one - other

        return self._cached(key, compute)

    def check_map(
        self, source: str, *, model: str = "", region: str = "", n: int = 24
    ) -> list[CheckRow]:
        """Measure the sanity checks of an attention map on images of the tested set.

        Parameters
        ----------
        source, model, region
            Map, as in `attention`. The score of the deletion curves of a backbone's map is the
            class probability of the model.
        n : int, default 24
            Number of images, spread evenly over the set.

        Returns
        -------
        list of CheckRow

        Raises
        ------
        ConfigError
            If the map has no such check.
        """
        stimuli = self.stimuli(self.tested)
        rows = np.unique(np.linspace(0, len(stimuli) - 1, n).astype(int))
        images = stimuli.subset(rows)
        if source == ENCODER:
            query = region or self.map_choices(source)["regions"][0]
            backbone = self._encoder_backbone()
            return check_roi_attention(
                self.encoder, images, query, backbone=backbone, seed=self.seed
            ).rows
        require(
            source in (BACKBONE, LOOKED),
            ConfigError,
            f"one of {BACKBONE!r}, {ENCODER!r} and {LOOKED!r}",
            repr(source),
            "choose one of them; a lesion of ROIs tests the weights of the image over them",
        )
        if source == LOOKED:
            return check_brain_attention(self._fusion(model)[1], images, seed=self.seed).rows
        name = model or next(iter(self.models), "")
        fusion = self._model(name)
        return check_backbone(self.backbone, fusion, images, seed=self.seed).rows


def _by_name(
    models: Classifier | Mapping[str, Classifier | Sequence[Classifier]] | None,
) -> dict[str, Classifier]:
    if models is None:
        return {}
    if not isinstance(models, Mapping):
        models = {getattr(models, "name", "model"): models}
    return {name: m[0] if isinstance(m, (list, tuple)) else m for name, m in models.items()}


def _has_fusion(model: Classifier) -> bool:
    return isinstance(model, TrainedFusion) and model.config.head == "fusion"


def _place(name: str, index: int, shift: str, severity: int) -> _Place:
    return _Place(name, index, shift, severity if shift else 0)


def _checked(stimuli: StimulusSet, index: int) -> int:
    require(
        0 <= index < len(stimuli),
        DataError,
        f"an image number from 0 to {len(stimuli) - 1} of {stimuli.name!r}",
        index,
        "choose a number in this range",
    )
    return int(index)


def _lesion_key(lesion: Lesion | None) -> tuple[bytes, str, float, int] | None:
    if lesion is None:
        return None
    return lesion.mask.tobytes(), lesion.kind, lesion.strength, lesion.seed


def _rows(stored: StoredTokens, rows: slice | np.ndarray) -> StoredTokens:
    """Return the tokens of some stimuli of a set."""
    arrays = {k: getattr(stored, k) for k in ("cls", "mean", "patches")}
    return dataclasses.replace(stored, **{k: v[rows] for k, v in arrays.items() if v is not None})


def _select_head(weights: np.ndarray, head: int) -> np.ndarray:
    """Return the weights of one head, or their mean over the first axis for -1."""
    return weights.mean(0) if head < 0 else weights[head]
