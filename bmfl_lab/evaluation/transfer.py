"""Does alignment with one subject carry over to other subjects, and to another modality?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.things_eeg import EEG
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.evaluation.similarity import encoding_over_time, rsa_scores


def across_subjects(
    models: Mapping[str, Any], subjects: Sequence[Subject], *, split: str = "test", **options: Any
) -> pd.DataFrame:
    """RSA of models with subjects they were, and were not, trained on.

    Parameters
    ----------
    models : mapping of str to model
        Name of the subject a model was aligned with ("" for the network before alignment) to a model with
        ``activations(stimuli)``.
    subjects : sequence of Subject
        Whom the models are tested on; their `split` holds stimuli that trained no model.
    split : str, default "test"
    **options
        Of `rsa_scores`.

    Returns
    -------
    DataFrame
        As `rsa_scores`, with ``trained_on`` and ``own`` (the model was aligned with the tested subject) in front;
        ``subject`` is whom it was tested on. Ceilings are those of each subject by itself.

    Raises
    ------
    ConfigError
        If there is no model or no subject.
    DataError
        As `rsa_scores`.
    """
    if not models or not subjects:
        raise ConfigError(message("a model and a subject", f"{len(models)}, {len(subjects)}", "name at least one each"))
    frames = []
    for trained_on, model in models.items():
        for subject in subjects:
            stimuli = subject.stimuli.subset(subject.rows(split))
            table = rsa_scores(model.activations(stimuli), stimuli.ids, subject, **options)
            frames.append(table.assign(trained_on=trained_on, own=trained_on == subject.name))
    table = pd.concat(frames, ignore_index=True)
    return table[["trained_on", "own", *[c for c in table.columns if c not in ("trained_on", "own")]]]


def on_eeg(
    models: Mapping[str, Any],
    eeg: EEG,
    stimuli: StimulusSet,
    *,
    train: np.ndarray,
    test: np.ndarray,
    **options: Any,
) -> pd.DataFrame:
    """Encoding score of models on M/EEG at each time, e.g. of a network that was aligned with fMRI.

    Parameters
    ----------
    models : mapping of str to model
        Each has ``activations(stimuli)``.
    eeg : EEG
        Evoked responses; averaged over repeats here.
    stimuli : StimulusSet
        Holds the images of `eeg`; paired by id.
    train, test : ndarray of int64
        Disjoint rows of `eeg`.
    **options
        Of `encoding_scores`.

    Returns
    -------
    DataFrame
        Columns model, layer, time (s), value (mean r over sensors), n_stimuli (tested).

    Raises
    ------
    DataError
        If an EEG stimulus has no image, or rows overlap.
    """
    shown, data = stimuli.subset(stimuli.index_of(eeg.ids)), eeg.mean()
    rows = []
    for name, model in models.items():
        features = model.activations(shown)
        scores = encoding_over_time(features, data, train=train, test=test, **options)
        rows += [
            {"model": name, "layer": layer, "time": float(t), "value": float(scores[i, k]), "n_stimuli": len(test)}
            for i, layer in enumerate(features)
            for k, t in enumerate(eeg.times)
        ]
    return pd.DataFrame(rows)
