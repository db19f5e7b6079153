"""A study: labelled image sets for the classifier, subjects for the brain encoder, and where they came from."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.files import read_json

STUDIES = {
    "planted": "bmfl_lab.data.planted",
    "demo": "bmfl_lab.data.demo",
    "imagenet": "bmfl_lab.data.imagenet_study",
}
"""Named studies and the module whose ``load(**options)`` makes each."""


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone a study is meant to be used with.

    Parameters
    ----------
    name : str
        A name that `bmfl_lab.backbones.load_backbone` knows.
    weights : str or None
        Path of a weight file or folder, or None for the loader's own search.
    image_size : int
        Side in pixels to which images are resized and cropped; divisible by 14.
    resize : {"short", "direct"}
        Resize rule of the backbone's preprocessing; "direct" for images much smaller than
        `image_size`.
    """

    name: str
    weights: str | None = None
    image_size: int = 224
    resize: str = "short"


@dataclass(frozen=True)
class Study:
    """Everything an experiment reads.

    Parameters
    ----------
    name : str
        "planted", "demo", or the folder's name.
    description : str
        One sentence for figures and records; says *simulated* where responses are.
    sets : mapping of str to StimulusSet
        Labelled images for the classifier: "train", "val", "test" (in distribution) and natural OOD
        sets; empty in a study of brain responses only.
    subjects : mapping of str to Subject
        Who was (or was not) in the scanner; may be empty.
    ood : tuple of str
        Names in `sets` that are natural out-of-distribution sets.
    shifts : tuple of (str, int)
        Made shifts (name, severity) that the study's default evaluation applies to "test".
    backbone : BackboneSpec
        Default backbone.
    licences : mapping of str to str
        Source of each part to its licence.
    extra : mapping
        Anything else (for the planted study: its truth).

    Raises
    ------
    DataError
        If a natural OOD set is missing.

    Notes
    -----
    The loaders refuse images (by content) that are shared between sets or with a subject's stimuli,
    see `bmfl_lab.data.splits.check_leakage`; it reads every image, which is why a study itself does
    not.
    """

    name: str
    description: str
    sets: Mapping[str, StimulusSet]
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    ood: tuple[str, ...] = ()
    shifts: tuple[tuple[str, int], ...] = ()
    backbone: BackboneSpec = field(default_factory=lambda: BackboneSpec("dinov2_vits14_reg"))
    licences: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.ood:
            if name not in self.sets:
                raise DataError(
                    message(
                        f"an image set named {name!r}",
                        f"only {tuple(self.sets)}",
                        "add the set, or take the name out of `ood`",
                    )
                )

    def __repr__(self) -> str:
        sets = ", ".join(f"{name} {len(images)}" for name, images in self.sets.items())
        people = ", ".join(map(repr, self.subjects.values()))
        return f"Study({self.name!r}, {self.description!r}, images: {sets or 'none'}; subjects: {people or 'none'})"

    @property
    def simulated(self) -> bool:
        """True if any subject's responses were not measured in a brain."""
        return any(s.simulated for s in self.subjects.values())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of the training set."""
        return self.set("train").class_names

    def set(self, name: str) -> StimulusSet:
        """Return an image set.

        Raises
        ------
        DataError
            If there is none of that name.
        """
        if name not in self.sets:
            raise DataError(
                message(
                    f"an image set of study {self.name!r}", repr(name), nearest(name, self.sets)
                )
            )
        return self.sets[name]

    def subject(self, name: str | None = None) -> Subject:
        """Return a subject; the first one when no name is given.

        Raises
        ------
        DataError
            If there is none of that name, or the study has no subject.
        """
        if not self.subjects:
            raise DataError(
                message(
                    f"at least one subject in study {self.name!r}",
                    "none: it holds images only",
                    "give a subject's folder, or train a model without brain responses",
                )
            )
        if name is None:
            return next(iter(self.subjects.values()))
        if name not in self.subjects:
            raise DataError(
                message(
                    f"a subject of study {self.name!r}", repr(name), nearest(name, self.subjects)
                )
            )
        return self.subjects[name]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with any image, label or response."""
        h = hashlib.sha256(self.name.encode())
        for name in sorted(self.sets):
            h.update(f"{name}:{self.sets[name].fingerprint()}\n".encode())
        for name in sorted(self.subjects):
            subject = self.subjects[name]
            h.update(f"{name}:{subject.stimuli.fingerprint()}\n".encode())
            step = max(1, (64 << 20) // max(1, subject.n_vertices * 4))
            for start in range(0, len(subject.stimuli), step):
                h.update(subject.responses[start : start + step].tobytes())
        return h.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """Return the fields that a record keeps: name, description, fingerprint, simulated, sizes, files left out."""
        skipped = {name: sorted(files) for name, files in self.extra.get("skipped", {}).items()}
        return {
            "name": self.name,
            "description": self.description,
            "fingerprint": self.fingerprint(),
            "simulated": self.simulated,
            "n_classes": len(self.class_names) if "train" in self.sets else 0,
            "sets": {k: len(v) for k, v in self.sets.items()},
            "subjects": {k: [len(s.stimuli), s.n_vertices] for k, s in self.subjects.items()},
            **({"skipped": skipped} if skipped else {}),
        }


def chosen_subjects(
    found: Mapping[str, Any], subject: str | None, place: str | Path
) -> dict[str, Any]:
    """Return one of the subjects found at a place, or all where none is named.

    Raises
    ------
    DataError
        If there is none of that name.
    """
    if subject is None:
        return dict(found)
    if subject not in found:
        raise DataError(message(f"a subject in {place}", repr(subject), nearest(subject, found)))
    return {subject: found[subject]}


def read_study_file(path: str | Path) -> dict[str, Any]:
    """Read a study file: the name of a study and the options of its loader.

    Raises
    ------
    ConfigError
        If the file is missing, is not a JSON object, or names no known study.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(
            message("a study file", f"nothing at {path}", "write one, see load_study")
        )
    found = read_json(path)
    if not isinstance(found, dict) or found.get("study") not in STUDIES:
        got = repr(found.get("study")) if isinstance(found, dict) else type(found).__name__
        raise ConfigError(
            message(
                f"an object whose 'study' is one of {tuple(STUDIES)} in {path}",
                got,
                "mend the file",
            )
        )
    if "root" in found:
        found["root"] = str(path.resolve().parent / Path(str(found["root"])).expanduser())
    return found


def load_study(name_or_path: str | Path, **options: Any) -> Study:
    """Load a study by name or from a folder.

    Parameters
    ----------
    name_or_path : str or Path
        ``"planted"`` (generated, offline, seconds), ``"demo"`` (real photographs, simulated
        subject; fetched on first use), ``"imagenet"`` (the user's folders; needs ``root=...``), a
        folder of images in class folders, or a study file: JSON with ``"study"`` (one of these
        names) and its options, in which relative paths of ``"root"`` start at the file.
    **options
        Passed to the study's loader; unknown ones are refused.

    Returns
    -------
    Study

    Raises
    ------
    ConfigError
        If the name is unknown and no such folder exists, or an option is unknown.
    DataError, FetchError
        If the data are damaged or cannot be fetched.
    """
    name = str(name_or_path)
    if name in STUDIES:
        module = importlib.import_module(STUDIES[name])
        arguments: dict[str, Any] = dict(options)
    elif name.endswith(".json"):
        given = read_study_file(name)
        name = given.pop("study")
        module = importlib.import_module(STUDIES[name])
        arguments = {**given, **options}
    elif Path(name).expanduser().is_dir():
        module = importlib.import_module("bmfl_lab.data.folder")
        arguments = {"folder": Path(name).expanduser(), **options}
    else:
        raise ConfigError(
            message("the name of a study or an existing folder", repr(name), nearest(name, STUDIES))
        )
    import inspect

    known = [p for p in inspect.signature(module.load).parameters]
    for option in arguments:
        if option not in known:
            raise ConfigError(
                message(f"an option of study {name!r}", repr(option), nearest(option, known))
            )
    return module.load(**arguments)
