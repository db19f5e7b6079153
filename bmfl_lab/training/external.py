"""Responses that an external encoder predicted, in the place of a trained brain encoder."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bmfl_lab.data import Atlas, StimulusSet, Subject
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.errors import DataError, message, normal, require
from bmfl_lab.files import sha256_json
from bmfl_lab.models.bmfl import ResponseSource, TokenBatch
from bmfl_lab.training.batches import fingerprint


def lookup_source(ids: Sequence[str], responses: np.ndarray) -> ResponseSource:
    """Return a source that looks up responses by stimulus id.

    Parameters
    ----------
    ids : sequence of str, length n
        Stimulus ids of all images that the model will see.
    responses : ndarray, shape (n, n_vertices)
        Their responses.

    Raises
    ------
    DataError
        If ids and responses differ in number; when called, if an id is unknown.

    Notes
    -----
    A shifted image has the id of the original image, and so its response.
    """
    require(
        len(ids) == len(responses),
        DataError,
        f"{len(ids)} responses",
        len(responses),
        "give one row per stimulus id",
    )
    place = {normal(i): k for k, i in enumerate(ids)}

    def look_up(tokens: TokenBatch, ids: Sequence[str]) -> np.ndarray:
        missing = [str(i) for i in ids if normal(i) not in place]
        if missing:
            raise DataError(
                message(
                    "a response for every stimulus id",
                    f"none for {missing[0]!r}",
                    "add its response to those that are looked up",
                )
            )
        return np.asarray(responses[[place[normal(i)] for i in ids]], dtype=np.float32)

    look_up.identity = (
        f"lookup {sha256_json(list(place))} {fingerprint({'array': np.asarray(responses)})}"
    )
    return look_up


@dataclass(frozen=True, eq=False)
class ExternalEncoder:
    """Look up the responses that an external encoder predicted for the images of a study.

    Parameters
    ----------
    subject : Subject
        Subject whose responses are predictions, see `bmfl_lab.data.imported`.
    backbone : BackboneSpec
        Backbone of the study. The predictions do not depend on it.
    config : mapping of str to JSON values, default {}
        Configuration of the encoder that would have been trained.
    """

    subject: Subject
    backbone: BackboneSpec
    config: Mapping[str, Any] = field(default_factory=dict)
    selection: str = "none"
    sources: tuple[Mapping[str, Any], ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"ExternalEncoder({self.label!r}, n_vertices={self.atlas.n_vertices})"

    @property
    def atlas(self) -> Atlas:
        """Atlas of the vertices."""
        return self.subject.atlas

    @property
    def label(self) -> str:
        """Origin of the responses, for figures."""
        return f"responses predicted by {self.subject.info.get('predicted_by', self.subject.name)}"

    @property
    def facts(self) -> dict[str, Any]:
        """Name of the subject, and the configuration."""
        return {"subject": self.subject.name, "config": dict(self.config), "simulated": False}

    @property
    def scores(self) -> np.ndarray:
        """Validation r per vertex; NaN, because nothing was measured here."""
        return np.full(self.atlas.n_vertices, np.nan, np.float32)

    @functools.cached_property
    def source(self) -> ResponseSource:
        """Source of the responses for `bmfl_lab.training.train_fusion`; it refuses other images."""
        found = lookup_source([str(i) for i in self.subject.stimuli.ids], self.subject.responses)
        found.check = self.check
        return found

    def check(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the rows of images, int64 (n_stimuli,), and refuse images that were changed.

        Raises
        ------
        DataError
            If an image has no prediction, or is shifted.
        """
        own = self.subject.stimuli
        rows = own.index_of(stimuli.ids)
        changed = [i for i, row in enumerate(rows) if stimuli.digest_of(i) != own.digest_of(row)]
        require(
            not changed,
            DataError,
            "the images that the responses were predicted for",
            f"{len(changed)} that are shifted or changed, in {stimuli.name!r}",
            "leave out artificial shifts: there are no predictions for shifted images",
        )
        return rows

    def query_module(self) -> None:
        """Return None: the encoder itself, and its attention, are not here."""

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that change with any id or response."""
        return sha256_json(self.source.identity)[:16]

    def predict_stimuli(self, stimuli: StimulusSet, **_: object) -> np.ndarray:
        """Return the predicted responses to images, float32 (n_stimuli, n_vertices).

        Parameters
        ----------
        stimuli : StimulusSet
            Images of the study.
        **_
            Store, backbone and device of other encoders; not used.

        Raises
        ------
        DataError
            If there is no prediction for an image, see `check`.
        """
        return np.asarray(self.subject.responses[self.check(stimuli)], dtype=np.float32)
