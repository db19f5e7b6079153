"""Fetching NOD: what is announced, resuming, and that every file is right or absent."""

import errno
import lzma
import multiprocessing
import random
import re
import socket
import time

import nod_example as example
import nod_server
import pytest

from bmfl_lab import load_study
from bmfl_lab.data import __main__ as command
from bmfl_lab.data import nod, nod_fetch
from bmfl_lab.data.nod_fetch import Source, fetch
from bmfl_lab.errors import ConfigError, DataError, FetchError

RUNS, TRIALS = 2, 5


@pytest.fixture(autouse=True)
def local_server_allowed(monkeypatch):
    """Downloads from a server on this machine, which is no connection beyond it."""
    monkeypatch.delenv("BMFL_OFFLINE", raising=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("bucket")
    options = {"runs": RUNS, "trials": TRIALS}
    example.write_fake_nod(root, [1, 10, 11], coco=[1], images_only=[12], surfaces=[10], **options)
    return root, nod_server.manifest_of(root)


def patient(server, **options):
    return Source(
        getattr(server, "address", server),
        **{"pause": 0.01, "timeout": 2.0, "chunk": 256, **options},
    )


def same(root, tree, only=None):
    """Every file under its final name has the bytes of the bucket."""
    found = nod_server.final_files(root)
    for path, file in found.items():
        assert file.read_bytes() == (tree[0] / path).read_bytes(), path
    if only is not None:
        assert set(found) == set(only)
    return found


def part(tree, subject=10, betas=True):
    """Paths of a subject's part."""
    name = f"sub-{subject:02d}"
    events = [p for p in tree[1] if p.startswith(f"{name}/")]
    others = [
        p
        for p in tree[1]
        if f"/{name}/results/ses-imagenet" in p
        or p.endswith(f"{name}.BA_exvivo.32k_fs_LR.dlabel.nii")
    ]
    images = {
        nod.image_path(".", i).as_posix() for p in events for i in nod.read_events(tree[0] / p)
    }
    return {*events, *(others if betas else ()), *images}


def test_only_what_is_asked_for_and_said_before(tree, tmp_path, capsys):
    with nod_server.serve(tree[0]) as server:
        root = fetch(tmp_path / "nod", 10, manifest=tree[1], source=patient(server))
        wanted = part(tree)
        same(root, tree, wanted)
        said = capsys.readouterr().out
        total = sum(tree[1][p][0] for p in wanted) / 1e6
        assert re.search(rf"NOD sub-10 into .*nod: .* MB in {3 * RUNS + 1} files, and about", said)
        assert f"{total:.1f} MB in {len(wanted)} files are complete and verified" in said
        # a second time nothing is asked for, not even a connection
        asked = dict(server.asked)
        fetch(root, ["sub-10"], manifest=tree[1], source=patient(server))
        assert dict(server.asked) == asked
    assert list(load_study("nod", root=root, subjects=[10]).subjects) == ["sub-10"]


def test_other_parts(tree, tmp_path):
    with nod_server.serve(tree[0]) as server:
        options = {"manifest": tree[1], "source": patient(server)}
        root = fetch(tmp_path / "a", "10", surfaces=True, images_of=[12], **options)
        got = same(root, tree)
        assert part(tree, 12, betas=False) <= set(got)
        assert sum(p.endswith(".surf.gii") for p in got) == 4 and any(".sulc." in p for p in got)
        study = load_study("nod", root=root, subjects=[10])
        assert len(study.sets["train"]) and study.subject().atlas.mesh == "fsLR32k/sub-10"
        root = fetch(tmp_path / "b", [1], coco=True, sessions=[1], **options)
        assert sum("ses-coco" in p for p in same(root, tree)) == 20
        assert load_study("nod", root=root).subject().noise_ceiling is not None
        with pytest.raises(ConfigError, match=r"sessions of sub-01 among \[1\]"):
            fetch(root, [1], sessions=[2], **options)


@pytest.mark.parametrize(
    "faults",
    [
        {"cut": 2, "piece": 300},
        {"errors": 3},
        {"ignore_ranges": True, "cut": 1, "piece": 300},
        {"refuse_ranges": True, "cut": 1, "piece": 300},
        {"wrong_range": True, "cut": 1, "piece": 300},
        {"piece": 1000, "pause": 0.002},
    ],
    ids=lambda f: next(iter(f)),
)
def test_a_bad_network(tree, tmp_path, faults):
    with nod_server.serve(tree[0], **faults) as server:
        fetch(tmp_path, 10, manifest=tree[1], source=patient(server))
        same(tmp_path, tree, part(tree))
        assert ("cut" in faults) <= bool(server.ranges)
    assert not (tmp_path / ".partial").exists()


def test_a_server_that_falls_silent(tree, tmp_path):
    faults = {"stall": 1, "seconds": 1.0, "piece": 600}
    with nod_server.serve(tree[0], **faults) as server:
        started = time.monotonic()
        source = patient(server, timeout=0.2, workers=16)
        # the connection test has 5 s of its own
        fetch(tmp_path, 10, manifest=tree[1], source=source)
        same(tmp_path, tree, part(tree))
        assert time.monotonic() - started < 30


def test_it_goes_on_where_it_stopped(tree, tmp_path):
    path = max((p for p in part(tree) if "beta" in p), key=lambda p: tree[1][p][0])
    with nod_server.serve(tree[0], cut=99, piece=2000) as server:
        with pytest.raises(FetchError, match="what is complete is kept"):
            source = patient(server, attempts=1, workers=1)
            nod_fetch.download(tmp_path, [path], tree[1], source)
    left = next((tmp_path / ".partial").iterdir()).stat().st_size
    assert 0 < left < tree[1][path][0] and not nod_server.final_files(tmp_path)
    with nod_server.serve(tree[0]) as server:
        nod_fetch.download(tmp_path, [path], tree[1], patient(server))
        assert server.ranges == [(path, left)]
    same(tmp_path, tree, [path])


def test_progress_renews_the_patience(tree, tmp_path):
    path = max(tree[1], key=lambda p: tree[1][p][0] if p in part(tree) else 0)
    pieces = tree[1][path][0] // 1000
    with nod_server.serve(tree[0], cut=10**6, piece=1000) as server:
        nod_fetch.download(tmp_path, [path], tree[1], patient(server, attempts=2, pause=0.001))
        assert server.asked[path] > min(pieces, 3)
    same(tmp_path, tree, [path])


@pytest.mark.parametrize(
    "fault, match",
    [
        ("wrong", "twice. To fix it: do not use the file"),
        ("missing", "HTTP 404"),
        ("longer", "more than|IncompleteRead|Connection"),
    ],
)
def test_a_file_that_cannot_be_had(tree, tmp_path, fault, match):
    path = next(p for p in part(tree) if p.endswith("_beta.dscalar.nii"))
    with nod_server.serve(tree[0], **{fault: path}) as server:
        with pytest.raises(FetchError, match=match):
            fetch(tmp_path, 10, manifest=tree[1], source=patient(server, attempts=2))
    assert path not in same(tmp_path, tree)


def test_wrong_once_and_a_damaged_partial_file(tree, tmp_path):
    path = next(p for p in part(tree) if p.endswith("_beta.dscalar.nii"))
    with nod_server.serve(tree[0], wrong=path, wrong_times=1) as server:
        nod_fetch.download(tmp_path, [path], tree[1], patient(server))
        same(tmp_path, tree, [path])
        (tmp_path / path).write_bytes(b"damaged")  # a complete file that changed is fetched again
        nod_fetch.download(tmp_path, [path], tree[1], patient(server))
        same(tmp_path, tree, [path])
    with nod_server.serve(tree[0], cut=99, piece=900) as server:
        (tmp_path / path).unlink()
        with pytest.raises(FetchError):
            nod_fetch.download(tmp_path, [path], tree[1], patient(server, attempts=1))
    partial = next((tmp_path / ".partial").iterdir())
    partial.write_bytes(b"x" * partial.stat().st_size)
    with nod_server.serve(tree[0]) as server:
        nod_fetch.download(tmp_path, [path], tree[1], patient(server))
    same(tmp_path, tree, [path])


def test_offline(tree, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = Source(f"http://127.0.0.1:{port}", pause=0.01)
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"an answer of 127.0.0.1:\d+ within 5 s"):
        fetch(tmp_path, 10, manifest=tree[1], source=source)
    assert time.monotonic() - started < 5.5
    monkeypatch.setenv("BMFL_OFFLINE", "1")
    with nod_server.serve(tree[0]) as server:
        with pytest.raises(FetchError, match="BMFL_OFFLINE=1"):
            fetch(tmp_path, 10, manifest=tree[1], source=patient(server))
        assert not server.asked


def test_a_host_that_accepts_and_never_answers(tree):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = Source(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(FetchError, match="within 0 s; got ReadTimeout"):
            nod_fetch.check_connection(source, next(iter(tree[1])), seconds=0.3)


def test_a_disk_that_fills(tree, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    with nod_server.serve(tree[0]) as server:
        with monkeypatch.context() as patch:
            patch.setattr(nod_fetch.os, "replace", lambda *_: (_ for _ in ()).throw(full))
            with pytest.raises(DataError, match="a full disk"):
                fetch(tmp_path, 10, manifest=tree[1], source=patient(server))
        assert not nod_server.final_files(tmp_path)
        usage = type("Usage", (), {"free": 10})
        with monkeypatch.context() as patch:
            patch.setattr(nod_fetch.shutil, "disk_usage", lambda _: usage)
            with pytest.raises(DataError, match=r"MB free for .*; got 0.0 MB"):
                fetch(tmp_path, 10, manifest=tree[1], source=patient(server))


def test_two_at_once_in_one_folder(tree, tmp_path):
    from bmfl_lab.files import lock

    with lock(tmp_path / ".fetch.lock"), nod_server.serve(tree[0]) as server:
        context = multiprocessing.get_context("fork")
        failed = context.Queue()

        def other():
            try:
                fetch(tmp_path, 10, manifest=tree[1], source=patient(server))
            except DataError as error:
                failed.put(str(error))

        process = context.Process(target=other)
        process.start()
        assert "sole use of" in failed.get(timeout=20)
        process.join()


# --- the manifest ---


def test_the_published_manifest():
    manifest = nod_fetch.read_manifest()
    assert len(manifest) == 59_499
    wanted = nod_fetch.plan(manifest, ["sub-10"])
    assert len(wanted.events) == 10 and len(wanted.others) == 21 and wanted.n_photographs == 1000
    betas = sum(manifest[p][0] for p in wanted.others if "beta" in p)
    assert betas == 241_113_520
    for name, n in (("sub-01", 40), ("sub-09", 40), ("sub-30", 10)):
        assert len(nod_fetch.plan(manifest, [name]).events) == n
    assert len(nod_fetch.plan(manifest, ["sub-01"], sessions=[2, 3]).events) == 20
    everything = nod_fetch.plan(manifest, ["sub-01"], coco=True, localisers=True, surfaces=True)
    assert sum("ses-coco" in p for p in everything.others) == 20
    assert sum(p.endswith(".surf.gii") for p in everything.others) == 10
    photographs = [p for p in manifest if p.endswith(".JPEG")]
    assert {p.split("/")[2] for p in photographs} == set(nod.super_classes())


@pytest.mark.parametrize(
    "content, match",
    [
        ("# NOD OpenNeuro ds004496 version 3.0.0, schema 2\na\t1\tff", "version 2.1.2"),
        (nod_fetch.VERSION + "\na\tmany\tff", "ValueError"),
        (nod_fetch.VERSION + "\n../a\t1\tff", "paths below the root"),
        (nod_fetch.VERSION + "\n/etc/a\t1\tff", "paths below the root"),
        (None, "LZMAError"),
    ],
)
def test_a_manifest_of_another_version_or_damaged(tmp_path, content, match):
    path = tmp_path / "m.tsv.xz"
    path.write_bytes(b"no" if content is None else lzma.compress(content.encode()))
    with pytest.raises(DataError, match=match):
        nod_fetch.read_manifest(path)


def test_a_manifest_of_ones_own(tree, tmp_path):
    path = tmp_path / "m.tsv.xz"
    path.write_bytes(lzma.compress(nod_server.manifest_text(tree[1]).encode()))
    assert nod_fetch.read_manifest(path) == tree[1]


def test_events_that_name_an_unknown_photograph(tree, tmp_path):
    image = next(p for p in part(tree) if p.endswith(".JPEG"))
    less = {p: e for p, e in tree[1].items() if p != image}
    with nod_server.serve(tree[0]) as server:
        with pytest.raises(DataError, match="photographs of the events in the manifest"):
            fetch(tmp_path, 10, manifest=less, source=patient(server))


# --- the command ---


def test_the_command(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nod_fetch, "read_manifest", lambda *_: tree[1])
    monkeypatch.setattr(nod_fetch, "fetch_archive", lambda *_, **__: None)
    root = str(tmp_path / "nod")
    with nod_server.serve(tree[0]) as server:
        given = ["nod", "--subjects", "10", "11", "--root", root, "--address", server.address]
        assert command.main(given) == 0
    said = capsys.readouterr().out
    assert "NOD sub-10, sub-11 into" in said and "measured fMRI" in said
    assert command.main(["nod", "--check", "--root", root]) == 0
    assert "all as published" in capsys.readouterr().out
    path = next(p for p in part(tree) if p.endswith("_label.txt"))
    (tmp_path / "nod" / path).write_text("other")
    assert command.main(["nod", "--check", "--root", root]) == 2
    assert f"1 that differ, e.g. {path}" in capsys.readouterr().err
    assert command.main(["nod", "--subjects", "99"]) == 2


# --- killed at random instants ---


def killed(tree, folder, address, n):
    """Kill a fetch at each of n random instants, then finish it; return how often it was unfinished.

    The instants are drawn from the time that a fetch takes at that moment.
    """
    draw, context, unfinished = random.Random(0), multiprocessing.get_context("fork"), 0
    wanted, seconds = part(tree), None
    for k in range(n):
        root = folder / f"{k:03d}"
        options = {"manifest": tree[1], "source": patient(address)}
        if k % 10 == 0:
            started = time.monotonic()
            fetch(folder / f"whole-{k:03d}", 10, **options)
            seconds = time.monotonic() - started
        process = context.Process(target=fetch, args=(root, 10), kwargs=options)
        process.start()
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.join()
        unfinished += set(same(root, tree)) != wanted
        fetch(root, 10, **options)
        same(root, tree, wanted)
        assert not (root / ".partial").exists()
    return unfinished


def test_killed_at_a_few_instants(tree, tmp_path):
    with nod_server.serve_in_process(tree[0], piece=1500, pause=0.003) as address:
        assert killed(tree, tmp_path, address, 6) >= 3


@pytest.mark.slow
def test_killed_at_100_instants(tree, tmp_path):
    with nod_server.serve_in_process(tree[0], piece=1500, pause=0.003) as address:
        unfinished = killed(tree, tmp_path, address, 100)
    print(f"{unfinished} of 100 were killed before they had finished")
    assert unfinished >= 50
