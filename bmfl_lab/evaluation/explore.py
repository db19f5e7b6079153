"""What the interactive widgets ask: images, responses, lesions and attention of one study, as NumPy arrays, cached.

Shape suffixes: N stimuli of a batch, V vertices, C classes, H heads, P patches, R brain tokens or
queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.data.shifts import SHIFTS, shifted
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.evaluation import explore_lesions as lesions
from bmfl_lab.evaluation import explore_maps as maps
from bmfl_lab.evaluation import explore_tokens as tokens
from bmfl_lab.models.lesion import LESION_KINDS, Lesion
from bmfl_lab.runtime import half_the_threads

# an image leaves three to five small things; what a batch needs must outlast a walk through some
# fifty images
_REMEMBER = 256


class Explorer:
    """One study with its trained models, answering a widget's questions with NumPy arrays only.

    Parameters
    ----------
    study : Study
        Images, and the subject whose cortex is shown.
    models : mapping of str to model or list of models, or one model
        Each has ``logits(stimuli)``; `TrainedFusion` models can be lesioned and show attention. Of
        a list (one model a seed) the first is taken.
    encoder : TrainedEncoder, optional
        Predicts responses; that of the first model that has one by default.
    store : FeatureStore, optional
        Where tokens are kept.
    subject : str, optional
        Name; the first one by default.
    n_batch : int, default 200
        Images of each set behind an accuracy under a lesion, spread evenly over the set.
    n_controls : int, default 2
        Random lesions of the same size behind the control; each image stands under one of them, in
        turn.
    n_boot : int, default 500
        Bootstrap resamples.
    seed : int, default 0
        Of shifts, random lesions and the bootstrap.
    device : str, default "cpu"
        Where the backbone works.

    Attributes
    ----------
    tested : str
        Labelled image set behind tuning and accuracy: "test", or the first one; empty in a study
        without labels.

    Notes
    -----
    Nothing is computed before it is asked for. Tokens of whole sets come from the store; a shift of
    a single image is computed alone and kept in memory only.
    """

    def __init__(
        self,
        study: Study,
        models: Any = None,
        encoder: Any = None,
        *,
        store: FeatureStore | None = None,
        subject: str | None = None,
        n_batch: int = 200,
        n_controls: int = 2,
        n_boot: int = 500,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.study, self.seed, self.device = study, seed, device
        self.n_batch, self.n_controls, self.n_boot = n_batch, n_controls, n_boot
        self._models = _named(models)
        own = (getattr(m, "encoder", None) for m in self._models.values())
        self.encoder = (
            encoder if encoder is not None else next((e for e in own if e is not None), None)
        )
        self.store = store if store is not None else FeatureStore()
        self.subject = study.subject(subject) if study.subjects else None
        self.atlas = getattr(self.encoder, "atlas", None) or getattr(self.subject, "atlas", None)
        self.models, self.shifts, self.lesions = (
            tuple(self._models),
            tuple(SHIFTS.names()),
            LESION_KINDS,
        )
        self.tested = next(
            (name for name in ("test", *study.sets) if _is_labelled(study, name)), ""
        )
        named = study.sets.get("train" if "train" in study.sets else self.tested)
        self.class_names = () if named is None else named.class_names
        self.brain = "subject" if self.subject is None else f"subject {self.subject.name}"
        self.sets = (*study.sets, *(() if self.subject is None else (self.brain,)))
        self.ood = (*study.ood, *(f"{name} {severity}" for name, severity in study.shifts))
        self.title = study.name + (" (simulated responses)" if study.simulated else "")
        self._known: dict[Any, Any] = {}
        self._backbone: Any = None

    def __repr__(self) -> str:
        return f"Explorer({self.title!r}, models={list(self.models)}, encoder={self.encoder!r})"

    def _remember(self, key: tuple, make: Callable[[], Any]) -> Any:
        """Return what was made before for `key`, else make it; what was not asked for longest is forgotten."""
        if key in self._known:
            value = self._known.pop(key)
        else:
            with half_the_threads():
                value = make()
        self._known[key] = value
        while len(self._known) > _REMEMBER:
            self._known.pop(next(iter(self._known)))
        return value

    # --- images

    def stimuli(self, name: str) -> StimulusSet:
        """Return an image set: of the study, of the subject, or a shift of "test" ("masked 3").

        Raises
        ------
        DataError
            If there is none of that name.
        """
        if name in self.study.sets:
            return self.study.sets[name]
        if self.subject is not None and name == self.brain:
            return self.subject.stimuli
        shift, _, severity = name.rpartition(" ")
        if shift in self.shifts and severity in "12345":
            return self._remember(
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
        """Return the class index of an image, -1 where unlabelled."""
        stimuli = self.stimuli(name)
        return int(stimuli.labels[self._index(stimuli, index)])

    def _index(self, stimuli: StimulusSet, index: int) -> int:
        if not 0 <= index < len(stimuli):
            raise DataError(
                message(
                    f"an image number from 0 to {len(stimuli) - 1} of {stimuli.name!r}",
                    str(index),
                    "choose another",
                )
            )
        return int(index)

    def _one(self, name: str, index: int, shift: str, severity: int) -> StimulusSet:
        stimuli = self.stimuli(name)
        single = stimuli.subset([self._index(stimuli, index)])
        return shifted(single, shift, severity, self.seed) if shift else single

    def image(self, name: str, index: int, shift: str = "", severity: int = 3) -> np.ndarray:
        """Return the pixels that the backbone sees, uint8 (S, S, 3).

        Raises
        ------
        DataError
            If the image cannot be read or the index lies outside the set.
        """

        def make() -> np.ndarray:
            try:
                return self.backbone.preprocess.crop(
                    self._one(name, index, shift, severity).image(0)
                )
            except DataError:
                raise
            except Exception as error:
                raise DataError(
                    message(
                        f"a readable image {index} in {name!r}",
                        f"{type(error).__name__}: {error}",
                        "repair the file",
                    )
                ) from error

        return self._remember(("image", name, index, shift, shift and severity), make)

    @property
    def backbone(self) -> Any:
        """The backbone of the first model that has one, else the encoder's or the study's own; loaded when needed."""
        if self._backbone is None:
            found = next(
                (m.backbone for m in self._models.values() if hasattr(m, "backbone")), None
            )
            self._backbone = found
        if self._backbone is None:
            spec = getattr(self.encoder, "backbone", None) or self.study.backbone
            options = {"image_size": spec.image_size, "resize": spec.resize, "device": self.device}
            self._backbone = load_backbone(spec.name, spec.weights, **options)
        return self._backbone

    # --- responses

    def predicted(self, name: str, index: int, shift: str = "", severity: int = 3) -> np.ndarray:
        """Return the predicted response to an image, float32 (V,).

        Raises
        ------
        ConfigError
            If there is no brain encoder.
        """
        return tokens.predicted(self, name, index, shift, severity)

    def all_predicted(self, name: str) -> np.ndarray:
        """Return the predicted responses to a whole set, float32 (n, V)."""
        return tokens.all_predicted(self, name)

    def _need_encoder(self) -> Any:
        if self.encoder is None:
            raise ConfigError(
                message(
                    "a brain encoder",
                    "none",
                    "train one with train_brain_encoder and pass it to the Explorer",
                )
            )
        return self.encoder

    def measured(self, index: int) -> np.ndarray:
        """Return the subject's own response to one of its images, float32 (V,).

        Raises
        ------
        DataError
            If the study has no subject, or the index lies outside its images.
        """
        subject = self._need_subject()
        return np.asarray(subject.responses[self._index(subject.stimuli, index)], dtype=np.float32)

    def _need_subject(self) -> Any:
        if self.subject is None:
            raise DataError(
                message(
                    f"a subject with responses in study {self.study.name!r}",
                    "none",
                    "load a study with responses",
                )
            )
        return self.subject

    def accuracy(self) -> np.ndarray:
        """Return the encoder's validation r per vertex, (V,); NaN where undefined."""
        return np.asarray(self._need_encoder().scores, dtype=np.float64)

    def ceiling(self) -> np.ndarray:
        """Return the share of each vertex's variance that the image determines, (V,); NaN where undefined.

        Raises
        ------
        DataError
            If the study has no subject, or the subject no noise ceiling.
        """
        found = self._need_subject().noise_ceiling
        if found is None:
            raise DataError(
                message(
                    f"a noise ceiling of {self.subject.name!r}",
                    "none",
                    "choose another map, or estimate one first",
                )
            )
        return np.asarray(found, dtype=np.float64)

    def mask(self, regions: Sequence[str]) -> np.ndarray:
        """Return the vertices of ROIs, groups, or "vertex 12", bool (V,); none for an empty list.

        Raises
        ------
        ConfigError
            If a region is unknown or absent in this subject, or there is no cortex.
        """
        if self.atlas is None:
            raise ConfigError(
                message("a cortex", "a study without responses", "load a study with a subject")
            )
        return (
            self.atlas.select(regions)
            if len(regions)
            else np.zeros(self.atlas.n_vertices, dtype=bool)
        )

    def tuning(self, vertices: np.ndarray, name: str = "") -> dict[str, np.ndarray]:
        """Return the mean predicted response of a region to each class, with its standard error.

        Parameters
        ----------
        vertices : ndarray of bool, shape (V,)
            The region.
        name : str
            Labelled image set; `tested` by default.

        Returns
        -------
        dict
            ``mean`` and ``error`` (C,), NaN for a class without images; ``best`` the numbers of the
            images with the largest responses, first the largest; ``response`` (n,).

        Raises
        ------
        DataError
            If the study has no labelled images.
        """
        name = name or self.tested
        if not name:
            got = f"none in study {self.study.name!r}"
            raise DataError(
                message(
                    "labelled images for a tuning", got, "load a study with an image set of classes"
                )
            )
        response = self.all_predicted(name)[:, vertices].mean(1)
        labels = np.asarray(self.stimuli(name).labels)
        classes = [response[labels == c] for c in range(len(self.class_names))]
        mean = np.array([c.mean() if len(c) else np.nan for c in classes])
        error = np.array(
            [c.std(ddof=1) / np.sqrt(len(c)) if len(c) > 1 else np.nan for c in classes]
        )
        return {
            "mean": mean,
            "error": error,
            "best": np.argsort(-response, kind="stable")[:12],
            "response": response,
        }

    # --- models and lesions

    def _model(self, name: str) -> Any:
        if name not in self._models:
            got = repr(name) if self._models else "no model"
            do = (
                nearest(name, self.models)
                if self._models
                else "train one with train_fusion and pass it to the Explorer"
            )
            raise ConfigError(message("a trained model", got, do))
        return self._models[name]

    def lesion(
        self, regions: Sequence[str], kind: str = "mean", strength: float = 1.0
    ) -> Lesion | None:
        """Return a lesion of regions; None without regions or strength."""
        if not len(regions) or strength == 0:
            return None
        return Lesion(self.mask(regions), kind, strength, seed=self.seed)

    def has_brain(self, model: str) -> bool:
        """Tell whether a model reads responses, and so can be lesioned."""
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
        """Return the class probabilities of an image, float64 (C,)."""
        place = name, index, shift, severity

        def make() -> np.ndarray:
            return lesions.softmax(self._answer(model, *place, lesion)["logits"])[0]

        return self._remember(("probabilities", model, *place, lesions.key_of(lesion)), make).copy()

    def _answer(
        self, model, name, index, shift, severity, lesion, weights=False
    ) -> dict[str, np.ndarray]:
        found = self._model(model)
        if not hasattr(found, "classify"):
            if lesion is not None:
                raise ConfigError(
                    message("a fusion model for a lesion", repr(model), "choose another model")
                )
            return {"logits": found.logits(self._one(name, index, shift, severity))}
        cls, patches, grid = tokens.of_image(
            self, found.config.kind, found.config.block, name, index, shift, severity
        )
        response = None
        if found.source is not None:
            response = self._response(found, name, index, shift, severity)[None]
        return {**found.classify(cls, patches, response, lesion, weights=weights), "grid": grid}

    def _response(self, model: Any, name: str, index: int, shift: str, severity: int) -> np.ndarray:
        if model.encoder is not None and model.encoder is self.encoder:
            return self.predicted(name, index, shift, severity)
        key = ("source", model.name, name, index, shift, severity)
        return self._remember(
            key,
            lambda: model.predict_responses(self._one(name, index, shift, severity))[0],
        )

    def batch(
        self, model: str, sets: Sequence[str], lesion: Lesion | None = None
    ) -> dict[str, np.ndarray]:
        """Return accuracy on image sets, intact and lesioned; see `bmfl_lab.evaluation.explore_lesions.batch`."""
        return lesions.batch(self, model, sets, lesion)

    # --- attention

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the attention maps that the models at hand can show."""
        return maps.sources(self)

    def attention(
        self, source: str, name: str, index: int, shift: str = "", severity: int = 3, **choice: Any
    ) -> dict:
        """Return an attention map or the shares of ROIs; see `bmfl_lab.evaluation.explore_maps.attention`."""
        return maps.attention(self, source, name, index, shift, severity, **choice)

    def map_models(self, source: str) -> tuple[str, ...]:
        """Return the models that can show an attention source; the backbone and the encoder serve all alike."""
        return maps.models(self, source)

    def map_choices(self, source: str, model: str = "") -> dict[str, Any]:
        """Return what can be chosen for an attention source: number of heads, of blocks, names of regions."""
        return maps.choices(self, source, model)


def _is_labelled(study: Study, name: str) -> bool:
    return name in study.sets and bool(np.any(np.asarray(study.sets[name].labels) >= 0))


def _named(models: Any) -> dict[str, Any]:
    if models is None:
        return {}
    if not isinstance(models, Mapping):
        models = {getattr(models, "name", "model"): models}
    return {name: m[0] if isinstance(m, (list, tuple)) else m for name, m in models.items()}
