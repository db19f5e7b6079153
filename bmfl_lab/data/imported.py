"""Read responses of any origin: one array file per hemisphere or cortex, image ids, and a space.

A researcher's own fMRI enters here as a measured subject; what another encoder predicted (in its
own environment, saved as an array) enters as predictions for the images of a study.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from bmfl_lab.data import fslr
from bmfl_lab.data.atlas import HEMISPHERES, Atlas
from bmfl_lab.data.class_folders import list_images
from bmfl_lab.data.containers import (
    check_room,
    load_image,
    open_cifti,
    open_gifti,
    open_hdf5,
    open_npz,
)
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.splits import split_by_id
from bmfl_lab.data.stimuli import StimulusSet, from_files, joined
from bmfl_lab.data.study import Study, load_study, register_reader
from bmfl_lab.data.surfaces import MESHES
from bmfl_lab.errors import ConfigError, DataError, message, nearest, normal, require, translated
from bmfl_lab.files import link_guard, load_npy, read_json, read_table, system_errors

SPACES = {
    **{mesh: (size, size) for mesh, size in MESHES.items()},
    "fsaverage7": (MESHES["fsaverage"],) * 2,
    "fsLR32k": (32_492, 32_492),
    "challenge": (19_004, 20_544),
    "voxels": None,
    "electrodes": None,
}
"""Name of a space to its numbers of left and right vertices; volumes and arrays have no fixed one.

Responses in "fsLR32k" may also have 59,412 columns, the cortical part of HCP's 91,282
grayordinates; they get the areas of Glasser et al. (2016). "challenge" is the space of the
Algonauts 2023 responses (Gifford et al. 2023, arXiv:2301.03198) for subjects with complete data."""
_LEAST_STANDARDISED = 8
"""Images of a set from which on a standard deviation of one is no accident (our choice)."""
FORMATS = (".npy", ".npz", ".h5", ".hdf5", ".mgh", ".mgz", ".gii", ".nii", ".nii.gz")
_MESH_OF = {"fsaverage7": "fsaverage", "challenge": None, "voxels": None, "electrodes": None}
_Source = str | Path | Sequence[str] | Mapping[str, str]


@dataclass(frozen=True)
class Responses:
    """Hold responses and the images that they belong to.

    Parameters
    ----------
    ids : tuple of str, length n_stimuli
        Image of each row.
    values : ndarray of float32, shape (n_stimuli, n_vertices)
        Responses; a memory map where the file is one ``.npy`` of float32.
    atlas : Atlas
        Hemisphere and, where the space is a surface, place of each vertex.
    source : str
        Names of the files.
    repeats : ndarray of float32, shape (n_stimuli, n_repeats, n_vertices), optional
        Single presentations, whose mean `values` is.
    """

    ids: tuple[str, ...]
    values: np.ndarray
    atlas: Atlas
    source: str
    repeats: np.ndarray | None = None

    def rows(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the row of each image of a set, matched by id and never by position.

        Parameters
        ----------
        stimuli : StimulusSet
            Images whose ids may be paths.

        Returns
        -------
        ndarray of int64, shape (n_stimuli,)

        Raises
        ------
        DataError
            If an image has no row.

        Notes
        -----
        Ids are compared as they are; if that leaves an image without a row, by file name; and if
        that does, too, by file name without suffix. A comparison in which an id has several
        partners is not used.
        """
        return _pair(stimuli.ids, self.ids, f"images of {stimuli.name!r}", f"rows of {self.source}")


def _pair(wanted: Sequence[str], known: Sequence[str], what: str, where: str) -> np.ndarray:
    """Return the position in `known` of each wanted id, by the first comparison that is unique."""
    wanted, known = list(map(normal, wanted)), list(map(normal, known))
    for key in (str, _file_name, _file_stem):
        counts = Counter(key(i) for i in known)
        place = {key(i): k for k, i in enumerate(known)}
        keys = [key(i) for i in wanted]
        if len(set(keys)) == len(keys) and all(counts[k] == 1 for k in keys):
            return np.asarray([place[k] for k in keys], dtype=np.int64)
    stems = Counter(_file_stem(i) for i in known)
    whole = set(known)
    exact = [i for i in wanted if i not in whole]
    none = [i for i in wanted if not stems[_file_stem(i)]]
    if len(exact) < len(
        wanted
    ):  # some ids agree as they are: those that do not are the missing ones
        none = exact
    several = [i for i in wanted if stems[_file_stem(i)] > 1]
    got = (
        f"{none[0]!r} and {len(none) - 1} others match none"
        if none
        else (f"{several[0]!r} matches several" if several else "several ids of one file name")
    )
    raise DataError(
        message(
            f"one of the {len(known)} {where} for each of the {len(wanted)} {what}",
            got,
            "use the paths of the images below their folder as ids",
        )
    )


def _file_name(identifier: str) -> str:
    return PurePosixPath(identifier).name


def _file_stem(identifier: str) -> str:
    return PurePosixPath(identifier).stem


def read_responses(
    path: _Source,
    ids: _Source | None = None,
    *,
    space: str,
    atlas: Atlas | None = None,
    key: str = "responses",
) -> Responses:
    """Read responses of any origin.

    Parameters
    ----------
    path : str or Path, or mapping with the keys "left" and "right"
        File of the whole cortex, or one file per hemisphere. ``.npy``, ``.npz``, ``.h5``: an array
        (n_stimuli, n_vertices), or (n_stimuli, n_repeats, n_vertices) with NaN for repeats that an
        image lacks. ``.mgh``, ``.mgz``, ``.nii``: as stored by FreeSurfer,
        (n_vertices, 1, 1, n_stimuli), or a volume (x, y, z, n_stimuli). ``.gii``: one data array
        per image. ``.dscalar.nii``: one map per image; only cortical vertices are read, and the
        names of the maps are the ids if `ids` is not given.
    ids : str, Path or sequence of str, optional
        Image of each row: the ids, a text file with one per line, a ``.json`` list, or a ``.csv``
        or ``.tsv`` with a column "id". By default the array "ids" of an ``.npz`` or ``.h5`` file.
    space : str
        One of `SPACES`.
    atlas : Atlas, optional
        ROIs of these vertices, e.g. those of another subject in the same space.
    key : str, default "responses"
        Name of the array in an ``.npz`` or ``.h5`` file.

    Returns
    -------
    Responses

    Raises
    ------
    ConfigError
        If the space is unknown.
    DataError
        If a file is missing or damaged, an id repeats, values are not finite, or the numbers of
        rows, ids and vertices do not agree.
    """
    require(
        space in SPACES,
        ConfigError,
        f"a space among {tuple(SPACES)}",
        repr(space),
        nearest(space, SPACES),
    )
    files = _files(path)
    read = [_read_array(file, key) for file in files]
    arrays = [array for array, _, _ in read]
    source = " and ".join(file.name for file in files)
    rows = {a.shape[:-1] for a in arrays}
    require(
        len(rows) == 1,
        DataError,
        f"as many images, and repeats, in each of {source}",
        sorted(rows),
        "export both again",
    )
    found = next((names for _, names, _ in read if names is not None), None)
    names = _read_ids(ids) if ids is not None else found
    if names is None:
        raise ConfigError(
            message("the images of the rows", f"none in {source}", "pass ids=, one per row")
        )
    names = list(map(normal, names))
    _check_ids(names, len(arrays[0]), source)
    grayordinates = next((place for _, _, place in read if place is not None), None)
    sizes = [a.shape[-1] for a in arrays]
    place = _place(space, sizes, atlas, grayordinates, source)
    values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
    repeats = None
    if values.ndim == 3:
        shown = np.isfinite(values).sum(axis=1)
        repeats = values.astype(np.float32) if values.shape[1] > 1 else None
        values = np.nansum(values, axis=1) / np.where(shown, shown, np.nan)
    if values.dtype != np.float32:
        values = values.astype(np.float32)
    for start in range(0, len(values), 1024):
        bad = np.flatnonzero(~np.isfinite(values[start : start + 1024]).all(1))
        require(
            not len(bad),
            DataError,
            f"finite responses in {source}",
            f"NaN or infinity in row {start + int(bad[0]) if len(bad) else 0}",
            "leave out these images or these vertices before saving",
        )
    return Responses(tuple(names), values, place, source, repeats)


def _files(path: _Source) -> list[Path]:
    """Return the file of the whole cortex, or those of the left and the right hemisphere."""
    parts = dict(path) if isinstance(path, Mapping) else {"": path}
    require(
        set(parts) in ({""}, set(HEMISPHERES)),
        ConfigError,
        "files for 'left' and 'right'",
        sorted(parts),
        "name both hemispheres",
    )
    require(
        all(isinstance(part, (str, Path)) for part in parts.values()),
        ConfigError,
        "the path of a file, or one per hemisphere",
        repr(path),
        "write responses: file.npy, or 'left: ...' and 'right: ...' below it",
    )
    return [Path(parts[k]).expanduser() for k in sorted(parts)]


def _read_array(
    path: Path, key: str
) -> tuple[np.ndarray, list[str] | None, tuple[np.ndarray, np.ndarray] | None]:
    """Return values (n_stimuli, n_vertices), ids, and (hemisphere, index) of grayordinates."""
    require(
        path.is_file(),
        DataError,
        "a file of responses",
        f"nothing at {path}",
        "check the path",
    )
    name = path.name.lower()
    require(
        name.endswith(FORMATS),
        DataError,
        f"a file ending in {FORMATS}",
        repr(path.name),
        "save it in one of these formats",
    )
    names = place = None
    if name.endswith(".npy"):
        values = load_npy(path, mmap=True)
    elif name.endswith((".npz", ".h5", ".hdf5")):
        values, names = _read_container(path, key)
    elif name.endswith((".dscalar.nii", ".gii")):
        values, names, place = _read_maps(path)
    else:
        values = load_image(path, "responses")
        values = np.moveaxis(values, -1, 0) if values.ndim > 1 else values[None]
        values = values.reshape(len(values), -1)
    require(
        values.ndim in (2, 3) and values.dtype.kind in "fiu" and values.size,
        DataError,
        f"numbers of shape (n_stimuli, n_vertices), or with repeats in between, in {path}",
        f"{values.dtype} of shape {values.shape}",
        "save one row per image",
    )
    return values, names, place


def _read_container(path: Path, key: str) -> tuple[np.ndarray, list[str] | None]:
    """Return the array `key` and the ids of an ``.npz`` or HDF5 file."""

    def take(opened: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str] | None]:
        require(
            key in opened,
            DataError,
            f"an array {key!r} in {path}",
            sorted(opened),
            "pass its name as key=",
        )
        names = np.ravel(opened["ids"][()]).tolist() if "ids" in opened else None
        texts = None if names is None else [_text(n) for n in names]
        array = opened[key]
        check_room(key, getattr(array, "nbytes", 0), path)  # 0 for a group, which is refused next
        return np.asarray(array[()]), texts

    is_npz = path.suffix.lower() == ".npz"
    # NumPy, zipfile, zlib and h5py raise many kinds on damaged files
    with (
        translated(
            Exception,
            expected=f"{'an .npz file of plain arrays' if is_npz else 'arrays in HDF5'} at {path}",
            remedy="save it again",
        ),
        system_errors(path),
        open_npz(path) if is_npz else open_hdf5(path) as opened,
    ):
        return take(opened)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _read_maps(
    path: Path,
) -> tuple[np.ndarray, list[str] | None, tuple[np.ndarray, np.ndarray] | None]:
    """Read one map per image from a GIFTI or a CIFTI-2 file."""
    if path.suffix.lower() == ".gii":
        # nibabel and NumPy raise many kinds of errors on damaged files
        with translated(Exception, expected=f"responses in {path}", remedy="export it again"):
            return np.stack([array.data for array in open_gifti(path).darrays]), None, None
    file = open_cifti(path)
    values = file.read()
    require(
        file.models,
        DataError,
        f"one value per grayordinate in {path}",
        f"columns of another kind, values of shape {values.shape}",
        "save one map per image, with one column per grayordinate",
    )
    sides = ("CORTEX_LEFT", "CORTEX_RIGHT")
    cortex = [m for side in sides for m in file.models if m.structure == side]
    require(
        all(len(m.vertices) == m.count for m in cortex),
        DataError,
        f"the vertex of each cortical value in {path}",
        f"{[len(m.vertices) for m in cortex]} vertices of {[m.count for m in cortex]} values",
        "export it again",
    )
    n_side = [sum(m.count for m in cortex if m.structure == side) for side in sides]
    none = np.zeros(0, np.int64)
    chosen = [none, *(np.arange(m.offset, m.offset + m.count) for m in cortex)]
    index = np.concatenate([none, *(m.vertices for m in cortex)])
    hemisphere = np.repeat(np.arange(2, dtype=np.int8), n_side)
    names = None if file.names is None else list(file.names)
    return values[:, np.concatenate(chosen)], names, (hemisphere, index)


def _read_ids(source: _Source, column: str = "id") -> list[str]:
    """Return ids, or the texts of another column, from a list or from a file."""
    if not isinstance(source, (str, Path)):
        return [str(i) for i in source]
    path = Path(source).expanduser()
    require(
        path.is_file(),
        DataError,
        "a file of image ids",
        f"nothing at {path}",
        "check the path",
    )
    if path.suffix == ".json":
        found = read_json(path, remedy="save the list again")
        fine = isinstance(found, list) and all(type(i) in (str, int) for i in found)
        got = "another value"
        require(fine, DataError, f"a list of ids in {path}", got, "write a list of texts")
        return [str(i) for i in found]
    if path.suffix in (".csv", ".tsv"):
        delimiter = "\t" if path.suffix == ".tsv" else ","
        rows = read_table(path, [column], f"write a table with a column {column!r}", delimiter)
        return [row[column] for _, row in rows]
    with (
        translated(UnicodeDecodeError, expected=f"text in {path}", remedy="save it as UTF-8"),
        system_errors(path),
    ):
        text = path.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _check_ids(names: Sequence[str], n_rows: int, source: str) -> None:
    require(
        len(names) == n_rows,
        DataError,
        f"one id for each of the {n_rows} rows of {source}",
        f"{len(names)} ids",
        "list the image of each row, in the order of the rows",
    )
    twice = [name for name, count in Counter(names).items() if count > 1]
    require(
        not twice,
        DataError,
        f"each image once in {source}",
        f"{twice[:1]} more than once",
        "average repeated presentations before saving",
    )


def _place(
    space: str,
    sizes: list[int],
    atlas: Atlas | None,
    grayordinates: tuple[np.ndarray, np.ndarray] | None,
    source: str,
) -> Atlas:
    """Return the atlas of a space whose files hold `sizes` columns."""
    n, expected = sum(sizes), SPACES[space]
    if space == fslr.MESH and sizes == [fslr.N_CORTEX] and grayordinates is None:
        cortex = fslr.standard_cortex()
        atlas = atlas or fslr.build_atlas(cortex)
        grayordinates = cortex.hemisphere, cortex.index
    if grayordinates is not None:
        hemisphere, index = grayordinates
        expected = (int((hemisphere == 0).sum()), int((hemisphere == 1).sum()))
        require(
            space == "fsLR32k",
            DataError,
            "space='fsLR32k' for CIFTI files",
            space,
            "pass space='fsLR32k'",
        )
    elif expected is None:
        left = sizes[0] if len(sizes) == 2 else n
        hemisphere, index = np.repeat(np.arange(2, dtype=np.int8), [left, n - left]), None
    else:
        hemisphere = np.repeat(np.arange(2, dtype=np.int8), expected)
        index = np.concatenate([np.arange(size) for size in expected])
    if expected is not None and (
        n != sum(expected) or (len(sizes) == 2 and tuple(sizes) != expected)
    ):
        raise DataError(
            message(
                f"{expected[0]} left and {expected[1]} right vertices of {space!r} in {source}",
                f"{' and '.join(map(str, sizes))} columns",
                "name the space that the responses are in; 'voxels' takes any number",
            )
        )
    if atlas is not None:
        known = expected is not None or len(sizes) == 2  # one file of voxels tells no hemisphere
        require(
            atlas.n_vertices == n and (not known or np.array_equal(atlas.hemisphere, hemisphere)),
            DataError,
            f"an atlas of the {n} vertices of {source}",
            f"{atlas.n_vertices} vertices, {atlas.n_left} of them left",
            "take the atlas of a subject in the same space",
        )
        return atlas
    mesh = _MESH_OF.get(space, space)
    return Atlas(hemisphere, {}, None if mesh is None else index, mesh)


def _images(folder: str | Path, follow_links: bool) -> tuple[list[Path], list[str]]:
    """Return the image files below a folder and their paths relative to it."""
    root = Path(folder).expanduser()
    require(
        root.is_dir(),
        DataError,
        "a folder of images",
        f"nothing at {root}",
        "check the path",
    )
    guard = link_guard(root, follow_links)
    paths = list_images(root, guard, Counter(), deep=True)
    return paths, [p.relative_to(root).as_posix() for p in paths]


def _check_load(
    space: str, atlas: str | None, areas: _Source | None, images: str | Path, predicted_by: str
) -> None:
    """Refuse options of `load` that do not go together."""
    require(
        areas is None or (space == "electrodes" and atlas is None),
        ConfigError,
        "areas of electrodes, with space='electrodes' and no atlas",
        f"areas with space={space!r}",
        "leave out areas; the ROIs of vertices come from atlas=",
    )
    require(
        not (predicted_by and images),
        ConfigError,
        "predictions for the images of the study itself",
        f"images={str(images)!r} beside predicted_by",
        "leave out images; or leave out predicted_by if the responses were measured",
    )


def load(
    root: str | Path = "",
    responses: _Source = "",
    ids: _Source | None = None,
    *,
    images: str | Path = "",
    space: str = "",
    atlas: str | None = None,
    name: str = "",
    key: str = "responses",
    areas: _Source | None = None,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    follow_links: bool = False,
    predicted_by: str = "",
    sets: Mapping[str, StimulusSet] | None = None,
) -> Study:
    """Read responses of any origin as a study of one subject.

    Parameters
    ----------
    root : str or Path, default ""
        Folder at which relative paths of the other parameters start.
    responses, ids, space, key
        See `read_responses`.
    images : str or Path
        Folder of the images that were shown, at any depth; images without a row are left out. Not
        for predictions.
    atlas : str, optional
        A study with a subject in the same space, whose ROIs are used.
    name : str, optional
        Name of the subject; by default that of the file.
    areas : str, Path or sequence of str, optional
        For ``space="electrodes"``, arrays of monkeys or intracranial electrodes: the area of each
        column, as a list, or as a ``.csv`` or ``.tsv`` with a column "area". Each becomes an ROI;
        without it all electrodes are the ROI "array". No surface is needed.
    val, test : float, default 0.1
        Shares of the images that are held out for selection and for testing.
    seed : int, default 0
        Chooses the split.
    follow_links : bool, default False
        Allow images that are links out of their folder.
    predicted_by : str, default ""
        Name of the external encoder, if the responses are *predictions* for all images of the
        study that the subject joins. A fusion then reads them as they are: no encoder is trained.
    sets : mapping of str to StimulusSet, optional
        These images; `load_study` passes them.

    Returns
    -------
    Study
        One subject with responses float32 (n_stimuli, n_vertices) and no labelled images. There
        is a noise ceiling only if the array holds repeats, from which it is estimated.

    Raises
    ------
    ConfigError, DataError
        See `read_responses`; also if rows and images do not match one to one, or predictions were
        standardised over the images of a set on which models are tested.
    """
    needed = {"responses": responses, "images": predicted_by or images, "space": space}
    for option, value in needed.items():
        require(
            value,
            ConfigError,
            f"the option {option!r} of imported responses",
            "none",
            f"pass {option}=...",
        )
    _check_load(space, atlas, areas, images, predicted_by)
    base = Path(root).expanduser()
    found = read_responses(
        _from(base, responses), _from(base, ids), space=space, atlas=_atlas_of(base, atlas), key=key
    )
    if space == "electrodes" and atlas is None:
        found = replace(found, atlas=_array_atlas(_from(base, areas), found))
    if predicted_by:
        return _predictions(found, predicted_by, name or predicted_by, sets or {}, space)
    paths, relative = _images(_from(base, images), follow_links)
    chosen = _pair(found.ids, relative, f"rows of {found.source}", "images")
    shown = [relative[i] for i in chosen]
    stimuli = from_files("stimuli", [paths[i] for i in chosen], shown, np.full(len(shown), -1))
    splits, record = split_by_id(shown, val=val, test=test, seed=seed)
    title = name or Path(found.source.split(" and ")[0]).name.split(".")[0]
    left_out = len(relative) - len(shown)
    info = {"source": found.source, "space": space, "split": record, "images_without_row": left_out}
    parts = {"repeats": found.repeats, "info": info}
    subject = Subject(title, stimuli, found.values, found.atlas, splits, **parts)
    return Study(
        name=title,
        description=f"measured responses of {title} to {len(stimuli)} images in {space}",
        sets={},
        subjects={title: subject},
        licences={"responses": "the user's own"},
    )


def _array_atlas(areas: _Source | None, found: Responses) -> Atlas:
    """Return the areas of electrodes as ROIs; all electrodes are one ROI without them."""
    n = found.atlas.n_vertices
    names = ["array"] * n if areas is None else _read_ids(areas, "area")
    require(
        len(names) == n,
        DataError,
        f"the area of each of the {n} electrodes of {found.source}",
        f"{len(names)} areas",
        "write one row per electrode, in the order of the columns",
    )
    array = np.asarray(names, dtype=object)
    rois = {name: array == name for name in dict.fromkeys(names)}
    return Atlas(found.atlas.hemisphere, rois, groups={})


def _predictions(
    found: Responses, encoder: str, title: str, sets: Mapping[str, StimulusSet], space: str
) -> Study:
    """Return a study of one subject whose responses are the predictions of an external encoder."""
    images = joined("predicted", sets.values())
    require(
        len(images),
        ConfigError,
        "a study of images for the predictions",
        "predictions alone",
        "load the study of the images with subject='file'",
    )
    rows = found.rows(images)
    starts = np.cumsum([0, *(len(stimuli) for stimuli in sets.values())])
    for set_name, start, stop in zip(sets, starts, starts[1:]):
        if set_name != "train":
            _refuse_standardised(found.values[rows[start:stop]], set_name, found.source)
    whole = np.array_equal(rows, np.arange(len(found.values)))
    subject = Subject(
        title,
        images,
        found.values if whole else found.values[rows],
        found.atlas,
        splits={},
        kind="predicted",
        info={"source": found.source, "space": space, "predicted_by": encoder},
    )
    return Study(
        name=title,
        description=f"responses predicted by {encoder} for {len(images)} images in {space}",
        sets={},
        subjects={title: subject},
        licences={"responses": f"predictions of {encoder}"},
    )


def _refuse_standardised(values: np.ndarray, name: str, source: str) -> None:
    """Refuse predictions (n_stimuli, n_vertices) that were standardised over the images of a set.

    The prediction for an image then depends on the other images of the set, which a model that
    sees one image at a time cannot know (transductive).
    """
    if len(values) < _LEAST_STANDARDISED:
        return
    spreads = np.stack([values.std(axis=0), values.std(axis=0, ddof=1)])
    alike = (np.abs(values.mean(axis=0)) < 1e-3) & (np.abs(spreads - 1) < 1e-3).any(axis=0)
    require(
        alike.mean() < 0.95,
        DataError,
        f"predictions for set {name!r} in {source} that depend on each image alone",
        f"mean 0 and standard deviation 1 over its {len(values)} images at {alike.mean():.0%} of "
        "vertices: they were standardised over the set that they are tested on",
        "standardise with mean and standard deviation of the training images",
    )


def _from(base: Path, source: _Source | None) -> _Source | None:
    """Return a file or the files of both hemispheres as paths that start at `base`."""
    if isinstance(source, Mapping):
        return {side: str(base / Path(path).expanduser()) for side, path in source.items()}
    return base / Path(source).expanduser() if isinstance(source, (str, Path)) else source


def _atlas_of(base: Path, source: str | None) -> Atlas | None:
    """Return the atlas of the first subject of a study."""
    if source is None:
        return None
    place = base / Path(source).expanduser()
    return load_study(place if place.is_dir() else source).subject().atlas


register_reader("file", load, subjects_only=True)
