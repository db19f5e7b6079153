"""Brain encoders of different accuracy: fewer trials, other blocks, other subjects, added noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data import Study, Subject
from bmfl_lab.errors import ConfigError, require
from bmfl_lab.models.bmfl import ResponseSource
from bmfl_lab.runtime import rng
from bmfl_lab.training.context import local_device
from bmfl_lab.training.encoder import EncoderConfig, train_brain_encoder
from bmfl_lab.training.sources import EncoderSource, mixed_source
from bmfl_lab.training.trained_encoder import TrainedEncoder


@dataclass(frozen=True)
class EncoderVariant:
    """A brain encoder, and what sets it apart from the first one.

    Parameters
    ----------
    factor : str
        "as trained", "training size", "block", "subject" or "noise".
    level : str
        Level of the factor, in words.
    encoder : TrainedEncoder
        The encoder, for ``train_fusion(encoder=...)``.
    brain : callable or None
        Response source with noise, for ``train_fusion(brain=...)``.
    accuracy : float
        Validation r of the responses, mean over vertices.
    """

    factor: str
    level: str
    encoder: TrainedEncoder
    brain: ResponseSource | None
    accuracy: float


def encoder_variants(
    config: EncoderConfig,
    study: Study,
    *,
    subject: str | None = None,
    sizes: Sequence[float] = (0.1, 0.3),
    blocks: Sequence[int] = (),
    subjects: Sequence[str | Subject] = (),
    noise: Sequence[float] = (0.5,),
    store: FeatureStore | None = None,
    device: str = "auto",
    seed: int = 0,
) -> list[EncoderVariant]:
    """Train encoders whose accuracy differs for different reasons.

    Parameters
    ----------
    config : EncoderConfig
        Choices of the first encoder, which has all training stimuli and no noise.
    study : Study
        Study with a subject.
    subject : str, optional
        Subject of the first encoder; the first one by default.
    sizes : sequence of float, default (0.1, 0.3)
        Shares of the training stimuli, above 0 and below 1.
    blocks : sequence of int, default ()
        Other blocks of the backbone to read.
    subjects : sequence of str or Subject, default ()
        Other subjects: names of the study's, or subjects of any origin that saw images.
    noise : sequence of float, default (0.5,)
        Shares of the accuracy that are left when noise is mixed in, from 0 to 1.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains.
    seed : int, default 0
        Seed of the stimuli that are kept, and of the noise.

    Returns
    -------
    list of EncoderVariant
        The first encoder comes first, with the factor "as trained".

    Raises
    ------
    ConfigError
        If a share lies outside (0, 1).

    Notes
    -----
    NeuralOOD asks whether a better encoder helps more out of distribution and does not vary it;
    these four ways to vary it are our choice.
    """
    shares = [*sizes, *noise]
    require(
        all(0 < s < 1 for s in shares),
        ConfigError,
        "shares between 0 and 1",
        shares,
        "leave out what lies outside; the first encoder has all stimuli and no noise",
    )
    person = study.subject(subject)
    options = {"store": store, "device": device}

    def train(factor: str, level: str, config: EncoderConfig, study: Study, name: str):
        encoder = train_brain_encoder(config, study, subject=name, **options)
        return EncoderVariant(factor, level, encoder, None, float(np.nanmean(encoder.scores)))

    first = train("as trained", "all stimuli", config, study, person.name)
    found = [first]
    rows = person.rows("train")
    order = rng(seed, "training size").permutation(len(rows))
    for share in sizes:
        kept = np.sort(rows[order[: max(10, round(share * len(rows)))]])
        fewer = dataclasses.replace(person, splits={**person.splits, "train": kept})
        smaller = dataclasses.replace(study, subjects={**study.subjects, person.name: fewer})
        level = f"{len(kept)} stimuli"
        found.append(train("training size", level, config, smaller, person.name))
    for block in blocks:
        other = configs.replace(config, blocks=(block,))
        found.append(train("block", f"block {block}", other, study, person.name))
    for other in subjects:
        other = other if isinstance(other, Subject) else study.subject(other)
        wider = dataclasses.replace(study, subjects={**study.subjects, other.name: other})
        found.append(train("subject", other.name, config, wider, other.name))
    source = EncoderSource(first.encoder, local_device(device))
    reference = first.encoder.predict_stimuli(study.set("train"), store=store, device=device)
    for share in noise:
        accuracy = share * first.accuracy
        brain = mixed_source(
            source, reference, accuracy=accuracy, reached=first.accuracy, seed=seed
        )
        found.append(EncoderVariant("noise", f"{share:.0%} of r", first.encoder, brain, accuracy))
    return found
