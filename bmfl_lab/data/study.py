"""Hold a study (labelled images, subjects, sources) and load one through the registry of readers.

A new data set is one module with ``load(root, **options) -> Study`` and ``detect(path) -> bool``
that calls `register_reader`; see `Reader`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from bmfl_lab.config import type_problems
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.splits import check_leakage, count_copies
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, message, nearest, require, require_known
from bmfl_lab.files import read_json, read_yaml, system_errors

_MOST_PIXELS = 8192
"""Largest side of an image that a backbone may be given (our choice)."""


@dataclass(frozen=True)
class BackboneSpec:
    """Name the backbone that a study is meant to be used with.

    Parameters
    ----------
    name : str
        A name that `bmfl_lab.backbones.load_backbone` accepts.
    weights : str or None
        Path of a weight file or folder, None for the loader's own search, or "auto", which may
        download the original weights; see `bmfl_lab.backbones.load_backbone`.
    image_size : int
        Side in pixels to which images are resized and cropped; divisible by the patch
        size of the backbone.
    resize : {"short", "direct"}
        Resize rule of the backbone's preprocessing; "direct" for images much smaller than
        `image_size`.
    """

    name: str
    weights: str | None = None
    image_size: int = 224
    resize: str = "short"

    def __post_init__(self) -> None:
        require(
            1 <= self.image_size <= _MOST_PIXELS and self.resize in ("short", "direct"),
            ConfigError,
            f"an image_size from 1 to {_MOST_PIXELS} pixels, and resize 'short' or 'direct'",
            f"image_size={self.image_size}, resize={self.resize!r}",
            "correct them in the study file or where load_study is called",
        )


@dataclass(frozen=True)
class Study:
    """Hold everything that an experiment reads.

    Parameters
    ----------
    name : str
        "planted", "demo", or the folder's name.
    description : str
        One sentence for figures and records; says *simulated* or *predicted* where responses are.
    sets : mapping of str to StimulusSet
        Labelled images for the classifier: "train", "val", "test" (in distribution) and natural OOD
        sets; empty in a study of brain responses only.
    subjects : mapping of str to Subject
        Subjects, measured or simulated, by name; may be empty.
    ood : tuple of str
        Names in `sets` that are natural out-of-distribution sets.
    shifts : tuple of (str, int)
        Made shifts (name, severity) that the study's default evaluation applies to "test".
    backbone : BackboneSpec
        Default backbone.
    licences : mapping of str to str
        Source of each part to its licence.
    extra : mapping
        Further facts by name (for the planted study: its ground truth).

    Raises
    ------
    DataError
        If a natural OOD set is missing.

    Notes
    -----
    `load_study` refuses images (by content) that are shared between sets or with a subject's
    stimuli, see `bmfl_lab.data.splits.check_leakage`; it reads every image, which is why a study
    itself does not.
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
            require(
                name in self.sets,
                DataError,
                f"an image set named {name!r}",
                f"only {tuple(self.sets)}",
                "add the set, or take the name out of `ood`",
            )

    def __repr__(self) -> str:
        sets = ", ".join(f"{name} {len(images)}" for name, images in self.sets.items())
        people = ", ".join(map(repr, self.subjects.values()))
        return (
            f"Study({self.name!r}, {self.description!r}, images: {sets or 'none'}; "
            f"subjects: {people or 'none'})"
        )

    @property
    def simulated(self) -> bool:
        """True if any subject's responses come from a simulation."""
        return any(s.simulated for s in self.subjects.values())

    @property
    def kind(self) -> str:
        """Return the origin of the responses, for titles; "" for a study without a subject.

        If subjects differ, "simulated" goes before "predicted", and "predicted" before "measured".
        """
        kinds = {s.kind for s in self.subjects.values()}
        return next((k for k in ("simulated", "predicted", "measured") if k in kinds), "")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of the training set."""
        return self.set("train").class_names

    def set(self, name: str) -> StimulusSet:
        """Return an image set.

        Parameters
        ----------
        name : str
            Name of the set.

        Returns
        -------
        StimulusSet

        Raises
        ------
        DataError
            If there is none of that name.
        """
        require_known(name, self.sets, DataError, f"an image set of study {self.name!r}")
        return self.sets[name]

    def subject(self, name: str | None = None) -> Subject:
        """Return a subject.

        Parameters
        ----------
        name : str, optional
            Name of the subject; by default the first one.

        Returns
        -------
        Subject

        Raises
        ------
        DataError
            If there is none of that name, or the study has no subject.
        """
        require(
            self.subjects,
            DataError,
            f"at least one subject in study {self.name!r}",
            "none: it holds images only",
            "add the line 'subject: demo' to the study file, or subject='demo' to load_study "
            "(lends the simulated subject of the demo), or give the folder of a subject there",
        )
        if name is None:
            return next(iter(self.subjects.values()))
        require_known(name, self.subjects, DataError, f"a subject of study {self.name!r}")
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
        """Return the fields that a record keeps.

        Returns
        -------
        dict
            Name, description, fingerprint, ``simulated``, kind of the responses, number of classes,
            sizes of the sets and of the subjects, and, if any, the files left out and the number of
            images per subject that lie in two splits under different ids.
        """
        copies = {k: count_copies(s.stimuli, s.splits) for k, s in self.subjects.items()}
        copies = {name: n for name, n in copies.items() if n}
        skipped = {name: sorted(files) for name, files in self.extra.get("skipped", {}).items()}
        return {
            "name": self.name,
            "description": self.description,
            "fingerprint": self.fingerprint(),
            "simulated": self.simulated,
            "responses": self.kind,
            "n_classes": len(self.class_names) if "train" in self.sets else 0,
            "sets": {k: len(v) for k, v in self.sets.items()},
            "subjects": {k: [len(s.stimuli), s.n_vertices] for k, s in self.subjects.items()},
            **({"skipped": skipped} if skipped else {}),
            **({"copies_across_splits": copies} if copies else {}),
            **({"left_out": self.left_out()} if self.left_out() else {}),
        }

    def left_out(self) -> dict[str, dict[str, int]]:
        """Count the files among the images that are not images.

        Returns
        -------
        dict of str to dict of str to int
            Name of the set or subject to the number of files per suffix. A set that was split off
            from another one is not listed again.
        """
        stimuli = {**self.sets, **{name: s.stimuli for name, s in self.subjects.items()}}
        found: dict[str, dict[str, int]] = {}
        for name, images in stimuli.items():
            if images.left_out and all(images.left_out is not other for other in found.values()):
                found[name] = images.left_out
        return found


_Place = TypeVar("_Place")


def chosen_subjects(
    found: Mapping[str, _Place],
    subject: str | None,
    place: str | Path,
    wanted: str = "files of a subject",
) -> dict[str, _Place]:
    """Return one of the subjects found at a place, or all where none is named.

    Parameters
    ----------
    found : mapping of str to object
        Name of each subject to where its data lie.
    subject : str or None
        Name of the only subject to take.
    place : str or Path
        Name of the place in error messages.
    wanted : str, default "files of a subject"
        Description of the files of a subject, for the message if there are none.

    Returns
    -------
    dict of str to object
        The chosen part of `found`.

    Raises
    ------
    DataError
        If there is no subject, or none of that name.
    """
    remedy = f"give the folder that holds {wanted}"
    require(found, DataError, f"the data of a subject in {place}: {wanted}", "none", remedy)
    if subject is None:
        return dict(found)
    require_known(subject, found, DataError, f"a subject in {place}")
    return {subject: found[subject]}


@dataclass(frozen=True)
class Reader:
    """Names the two functions that read a data set.

    Parameters
    ----------
    name : str
        Name for `load_study` and for study files.
    load : callable
        ``load(**options) -> Study``. The first parameter of a reader of folders is called ``root``.
    detect : callable, optional
        ``detect(path) -> bool``, whether a folder is in the layout of this reader; None for a
        reader that is chosen only by its name.
    subjects_only : bool, default False
        True if the studies hold their own subjects and, as a rule, no labelled images; the option
        ``subject`` then names one of the subjects. For all other readers ``subject`` is a place to
        read subjects from.
    general : bool, default False
        True if any other reader that detects a folder comes first.
    layout : str, default ""
        Content of a folder in this layout, in a few words for error messages.
    """

    name: str
    load: Callable[..., Study]
    detect: Callable[[Path], bool] | None = None
    subjects_only: bool = False
    general: bool = False
    layout: str = ""

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of `load` by name."""
        return inspect.signature(self.load).parameters

    @property
    def by_name(self) -> bool:
        """True if the name alone chooses this reader, even where a folder has that name."""
        root = self.options.get("root")
        has_default = root is not None and root.default is not inspect.Parameter.empty
        return self.detect is None or has_default


READERS: dict[str, Reader] = {}
"""Readers by name, in the order of registration; importing `bmfl_lab.data` registers its own."""


def register_reader(
    name: str,
    load: Callable[..., Study],
    detect: Callable[[Path], bool] | None = None,
    *,
    subjects_only: bool = False,
    general: bool = False,
    layout: str = "",
) -> None:
    """Make a data set known to `load_study`.

    Parameters
    ----------
    name, load, detect, subjects_only, general, layout
        Fields of `Reader`.

    Raises
    ------
    ConfigError
        If the name is taken.

    Notes
    -----
    If several readers detect a folder, the one that was registered last reads it.
    """
    require(
        name not in READERS,
        ConfigError,
        "a new name of a reader",
        f"{name!r}, which is taken",
        "choose another name",
    )
    READERS[name] = Reader(name, load, detect, subjects_only, general, layout)


def read_study_file(path: str | Path) -> dict[str, Any]:
    """Read a study file: the name of a reader and its options.

    Parameters
    ----------
    path : str or Path
        YAML or JSON file; see `load_study`.

    Returns
    -------
    dict
        Content of the file; a relative ``"root"`` has become a path that starts at the file.

    Raises
    ------
    ConfigError
        If the file is missing, does not hold names and values, or names no known reader.
    """
    path = Path(path).expanduser()
    require(
        path.is_file(),
        ConfigError,
        "a study file",
        f"nothing at {path}",
        "write it, for example with the line 'study: planted', see load_study",
    )
    # the escapes of JSON for characters such as emoji mean something else in YAML
    found = read_json(path, remedy="mend the line") if path.suffix == ".json" else read_yaml(path)
    kind = found.get("study") if isinstance(found, dict) else type(found).__name__
    names = (*READERS, *_SHORT_NAMES)
    require(
        isinstance(found, dict) and str(kind) in names,
        ConfigError,
        f"the line 'study: NAME' with a name among {names} in {path}",
        repr(kind),
        nearest(str(kind), names),
    )
    found["study"] = _SHORT_NAMES.get(kind, kind)
    for key in ("root", "cache", SUBJECT_ROOT):
        if found.get(key):
            found[key] = str(path.resolve().parent / Path(str(found[key])).expanduser())
    return found


_SHORT_NAMES = {"god": "kamitani"}
"""Further names of readers in study files; elsewhere a folder may have such a name."""
STUDY_FILES = (".yaml", ".yml", ".json")
"""Endings of the names of study files."""
_BACKBONE = {"backbone": "name", "weights": "weights", "image_size": "image_size"}
"""Options of `load_study` and the field of `BackboneSpec` that each sets."""
SUBJECT_ROOT = "subject_root"
"""Option of `load_study` with the folder that the reader of the subjects reads."""
_SHARED = ("seed", "follow_links")
"""Options that reach both the reader of the images and the reader of the subjects."""


@system_errors("the study")
def load_study(name_or_path: str | Path, **options: object) -> Study:
    """Load a study by name, from a folder, or from a study file.

    Parameters
    ----------
    name_or_path : str or Path
        Name of a reader: ``"planted"`` (generated offline in seconds), ``"demo"`` (real photographs
        and a simulated subject, fetched on first use), ``"imagenet"`` (the user's folders; needs
        ``root=...``), ``"nod"`` (measured responses to photographs, see `bmfl_lab.data.nod`), or
        any other name in `READERS`. Or a folder, whose reader is found by its
        layout: subjects in the layout of Algonauts 2023, NSD or the Kamitani lab, or else class
        folders of images. Or a study file: YAML or JSON with ``study`` (the name of a reader) and
        its options, in which a relative ``root``, ``subject_root`` or ``cache`` starts at the file.
    **options
        Options of the reader's ``load``, and for every study:

        - ``subject``: a folder of subjects or the name of a reader, whose subjects join the images
          of this study in place of its own. Options that only the reader of the subjects has go to
          it; ``seed`` and ``follow_links`` go to both. For a folder of subjects, ``subject`` is the
          name of the only subject to read.
        - ``subject_root``: the folder that the reader named by ``subject`` reads. By default it
          is ``root`` if that holds its data, or else the reader's own place, such as the copy of
          NOD in the cache for ``subject="nod"``.
        - ``backbone``, ``weights``, ``image_size``: fields of the study's `BackboneSpec`.
        - ``skip_broken``: True trains without the training images that cannot be decoded, in place
          of stopping at the first; their number is part of each record. It takes batches from
          images.

    Returns
    -------
    Study
        Study in which no image is shared between two sets, or between a set and the stimuli of a
        subject. Only a reader that was called with ``verify=False`` leaves this unchecked.

    Raises
    ------
    ConfigError
        If the name is unknown and no such folder exists, or an option is unknown.
    DataError, FetchError
        If the data are damaged or cannot be fetched, or sets share an image.

    Notes
    -----
    A relative ``subject`` starts at ``root`` if that is given, in a study file without ``root`` at
    the file, and else at the working directory.
    """
    found = _request(str(name_or_path), options)
    study = found.reader.load(**found.options)
    if found.skip_broken and "train" in study.sets:
        train = replace(study.set("train"), skip_broken=True)
        study = replace(study, sets={**study.sets, "train": train})
    if found.backbone:
        study = replace(study, backbone=replace(study.backbone, **found.backbone))
    if found.other is not None:
        study = _join(study, found.other, found.theirs)
    verify = found.reader.options.get("verify")
    default = True if verify is None else verify.default
    return _check_overlap(study) if found.options.get("verify", default) else study


@dataclass(frozen=True)
class _Request:
    """Hold what is asked of `load_study`, checked without reading data.

    Parameters
    ----------
    reader : Reader
        Reader of the images.
    options : dict
        Its options.
    backbone : dict
        Fields of the study's `BackboneSpec`.
    skip_broken : bool
        See `load_study`.
    other : (Reader, Path or None), optional
        Reader and folder of the subjects that join, if another one reads them.
    theirs : dict
        Its options.
    """

    reader: Reader
    options: dict[str, object]
    backbone: dict[str, object]
    skip_broken: bool
    other: tuple[Reader, Path | None] | None
    theirs: dict[str, object]


def _request(name: str, options: dict[str, object]) -> _Request:
    """Return what a name and options ask for; the errors are those of `load_study`."""
    base = Path()
    if name.endswith(STUDY_FILES) and name not in READERS:
        given = read_study_file(name)
        base = Path(name).expanduser().resolve().parent
        name = given.pop("study")
        options = {**given, **options}
    if "root" in options:
        base = options["root"]
        require(
            isinstance(base, (str, Path)),
            ConfigError,
            "a folder as root",
            repr(base),
            "write its path, or leave root out",
        )
    base = Path(base).expanduser()
    reader, root = _reader_of(name, rooted="root" in options)
    if root is not None:
        options["root"], base = root, Path()
    other, place, apart = None, options.get("subject"), options.pop(SUBJECT_ROOT, None)
    if not reader.subjects_only and not isinstance(place, bool):
        options.pop("subject", None)
        if place is not None:
            other = _reader_of(str(place), base, rooted=apart is not None, subjects=True)
    theirs = {} if other is None else _options_of_subjects(options, reader, other[0])
    takes_root = other is not None and other[1] is None and "root" in other[0].options
    require(
        apart is None or (takes_root and isinstance(apart, (str, Path))),
        ConfigError,
        f"{SUBJECT_ROOT} as a folder beside a subject that names a reader, such as 'subject: nod'",
        f"{SUBJECT_ROOT}={apart!r} and subject={place!r}",
        f"write the path, or leave {SUBJECT_ROOT} out"
        if takes_root
        else f"give as subject the name of its reader, or leave {SUBJECT_ROOT} out",
    )
    if apart is not None:
        theirs["root"] = Path(apart).expanduser()
    elif takes_root and not _has_own_place(other[0], base):
        theirs["root"] = base
    spec = {
        _BACKBONE[k]: options.pop(k) for k in _BACKBONE if k in options and k not in reader.options
    }
    skip_broken = options.pop("skip_broken", False)
    require(
        isinstance(skip_broken, bool),
        ConfigError,
        "skip_broken=True or False",
        repr(skip_broken),
        "choose one of them",
    )
    _check_options(reader, options, () if other is None else other[0].options)
    _check_types(BackboneSpec, spec)
    BackboneSpec(**{"name": "", **spec})  # checks the values
    return _Request(reader, options, spec, skip_broken, other, theirs)


def _has_own_place(reader: Reader, base: Path) -> bool:
    """Return whether a reader finds its data without a root, and `base` does not hold them."""
    return reader.by_name and reader.detect is not None and not reader.detect(base)


def _check_overlap(study: Study) -> Study:
    """Refuse images that lie in two sets, or in a set and among the stimuli of a subject.

    The subjects are compared one by one with the sets, as several may have seen the same images.
    """
    if not study.sets:
        return study
    found = check_leakage(study.sets)
    for name, n in found["duplicates_within"].items():
        if n:
            of = len(study.sets[name])
            print(f"{name}: {n} of {of} images are copies of others in it", flush=True)
    for name, subject in study.subjects.items():
        if subject.kind == "predicted":  # for these images, and no encoder is trained on them
            continue
        check_leakage({**study.sets, f"stimuli of {name}": subject.stimuli})
    return replace(study, extra={**study.extra, "leakage": found})


def check_study(name: str, base: Path = Path()) -> None:
    """Check that a study is known or its folder or file is there, without reading its data.

    Parameters
    ----------
    name : str
        Name, folder or study file, see `load_study`.
    base : Path, optional
        Folder in which a relative path starts; by default the working directory.

    Raises
    ------
    ConfigError
        If there is no such name, folder or file, or the file names no known reader.
    DataError
        If the file is damaged, or no reader detects the folder.
    """
    is_file = name.endswith(STUDY_FILES) and name not in READERS
    is_name = name in READERS and READERS[name].by_name
    # a name with nothing in it would be the folder `base` itself
    place = name if is_name or not name.strip() else str(base / Path(name).expanduser())
    found = _request(place if is_file or is_name or Path(place).exists() else name, {})
    options = found.reader.options.items()
    needs = [
        k for k, option in options if option.default is option.empty and k not in found.options
    ]
    require(
        not needs,
        ConfigError,
        f"a study file with 'study: {name}' and {', '.join(needs)}",
        f"the name {name!r} alone",
        "write this file, see load_study, and give its path",
    )
    root = found.options.get("root")
    require(
        root is None or Path(str(root)).expanduser().exists(),
        ConfigError,
        f"the root of study {name!r}",
        f"nothing at {root}",
        "correct root in the study file; a relative one starts at the file",
    )


def _reader_of(
    name: str, base: Path = Path(), *, rooted: bool = False, subjects: bool = False
) -> tuple[Reader, Path | None]:
    """Return the reader of a name or a folder, and the folder.

    A reader that detects folders and needs a root is chosen by its name only if that is given apart
    (`rooted`): a folder may well be called "nsd".
    """
    if name in READERS and (rooted or READERS[name].by_name):
        return READERS[name], None
    path = base / Path(name).expanduser()
    require(
        name.strip() and path.is_dir(),
        ConfigError,
        "the name of a study or an existing folder",
        repr(name),
        f"pass {SUBJECT_ROOT if subjects else 'root'}=..."
        if name in READERS
        else nearest(name, READERS),
    )
    readers = [r for r in reversed(READERS.values()) if r.detect and not (subjects and r.general)]
    found = [r for r in readers if r.detect(path)]
    layouts = "; ".join(f"{r.name} ({r.layout or 'see its documentation'})" for r in readers)
    require(
        found,
        DataError,
        f"brain responses in {path}" if subjects else f"data in {path}",
        "no layout that a reader detects",
        f"give a folder in one of these layouts: {layouts}",
    )
    return min(found, key=lambda r: r.general), path


def _options_of_subjects(
    options: dict[str, object], images: Reader, subjects: Reader
) -> dict[str, object]:
    """Move the options that only the reader of subjects has out of `options`; copy shared ones."""
    theirs = {}
    for option in [o for o in options if o in subjects.options and o not in ("root", "sets")]:
        if option in images.options and option in _SHARED:
            theirs[option] = options[option]
        elif option not in images.options and option not in _BACKBONE:
            theirs[option] = options.pop(option)
    return theirs


def _check_options(
    reader: Reader, options: Mapping[str, object], of_subjects: Iterable[str]
) -> None:
    for option in options:
        if option not in reader.options:
            known = dict.fromkeys(
                [*reader.options, "subject", SUBJECT_ROOT, *_BACKBONE, "skip_broken", *of_subjects]
            )
            known.pop("sets", None)
            remedy = f"{nearest(option, known)} All options: {', '.join(known)}"
            if "responses" in options:
                remedy = "add subject: file, which takes it"
            raise ConfigError(message(f"an option of study {reader.name!r}", repr(option), remedy))
    _check_types(reader.load, options)


def _check_types(function: Callable[..., object], values: Mapping[str, object]) -> None:
    problems = type_problems(function, values)
    require(
        not problems,
        ConfigError,
        "options of the documented types",
        "; ".join(problems),
        "correct the values where load_study is called, or in the study file",
    )


def _join(study: Study, source: tuple[Reader, Path | None], options: Mapping[str, object]) -> Study:
    """Give a study of images the subjects of another reader."""
    reader, root = source
    _check_types(reader.load, options)
    if "sets" in reader.options:
        options = {**options, "sets": study.sets}
    found = reader.load(**options) if root is None else reader.load(root=root, **options)
    found.subject()  # refuses a study without subjects
    predicted = any(s.kind == "predicted" for s in found.subjects.values())
    if predicted and study.shifts:
        print("artificial shifts are left out: there are no predictions for shifted images")
    return replace(
        study,
        subjects=found.subjects,
        shifts=() if predicted else study.shifts,
        licences={**study.licences, **found.licences},
    )
