"""What the operating system refuses becomes an error of this project with path, reason and a remedy for this reason."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from bmfl_lab import files
from bmfl_lab.backbones.weights import read_tensors
from bmfl_lab.data import load_study
from bmfl_lab.data.class_folders import read_wnids
from bmfl_lab.data.containers import load_mat, open_gifti, open_npz
from bmfl_lab.data.images import count_frames, decode_image
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.pickles import read_mapping, read_pickled_arrays, write_mapping
from bmfl_lab.data.splits import read_shared_ids
from bmfl_lab.data.stimuli import from_files
from bmfl_lab.data.study import read_study_file
from bmfl_lab.errors import BmflError, CheckpointError, DataError, FileError
from bmfl_lab.records import Record, read_record
from bmfl_lab.runs.__main__ import main
from bmfl_lab.runs.execute import folder_of, state_of
from bmfl_lab.runs.notebook import Notebook, read_notebook
from bmfl_lab.runs.paths import run_folder
from bmfl_lab.runs.spec import Run, load_spec
from bmfl_lab.training import checkpoint

REASONS = {
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "ulimit -n",
    errno.ENOMEM: "more memory",
    errno.EFBIG: "ulimit -f",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EIO: "copy of the file on another disk",
    errno.EROFS: "choose another folder",
    errno.EACCES: "ask the owner for permission",
    errno.EPERM: "ask the owner for permission",
    errno.ESTALE: "mount the network folder again",
    errno.ETIMEDOUT: "mount the network folder again",
    errno.EBUSY: "no other program uses it",
    errno.ENAMETOOLONG: "a shorter name",
    errno.ELOOP: "leads back to itself",
    errno.EISDIR: "the path of a file",
    errno.ENOTDIR: "the path of a folder",
    errno.EPROTO: "check the path",  # one without a remedy of its own
}


def picture(path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, format="PNG")
    return path


def record(folder):
    made = Record("nb", {}, {"name": "planted", "fingerprint": "0", "simulated": True})
    made.add("accuracy", 0.5, unit="fraction", split="test", n=4, selection="none")
    return made.finish(folder)


def saved(path, function, *arguments):
    function(path, *arguments)
    return path


def bundle(folder):
    checkpoint.write_bundle(folder, "x", {"a": torch.zeros(2)}, {})
    return folder / "x.json"


OPERATIONS = {
    "JSON": (lambda d: saved(d / "a.json", files.write_json, {}), files.read_json),
    "checksum": (lambda d: picture(d / "a.png"), files.sha256_file),
    "array": (lambda d: saved(d / "a.npy", np.save, np.ones(3)), files.load_npy),
    "image": (lambda d: picture(d / "a.png"), decode_image),
    "frames": (lambda d: picture(d / "a.png"), count_frames),
    "digest": (
        lambda d: picture(d / "a.png"),
        lambda p: from_files("x", [p], ["a"], [0]).digests(),
    ),
    "label names": (lambda d: saved(d / "m.npy", write_mapping, {1: "EBA"}), read_mapping),
    "pickled arrays": (
        lambda d: saved(d / "m.npy", write_mapping, {1: "EBA"}),
        read_pickled_arrays,
    ),
    "table of NSD": (
        lambda d: saved(d / "t.csv", Path.write_text, "nsdId,shared1000\n1,True\n"),
        read_shared_ids,
    ),
    "record": (record, read_record),
    "study file": (
        lambda d: saved(d / "s.json", files.write_json, {"study": "planted"}),
        read_study_file,
    ),
    "manifest": (bundle, checkpoint.read_manifest),
    "tensors": (lambda d: bundle(d).with_suffix(".safetensors"), checkpoint.read_tensors),
    "weights": (lambda d: bundle(d).with_suffix(".safetensors"), read_tensors),
    "torch weights": (
        lambda d: saved(d / "w.pth", lambda p: torch.save({"a": torch.ones(1)}, p)),
        read_tensors,
    ),
    "notebook": (lambda d: saved(d / "n.ipynb", Path.write_text, "{}"), read_notebook),
    "MATLAB file": (lambda d: saved(d / "a.mat", savemat, {"a": 1}), lambda p: load_mat(p, ["a"])),
    "compressed arrays": (
        lambda d: saved(d / "a.npz", np.savez, np.ones(3)),
        lambda p: open_npz(p).close(),
    ),
    "GIFTI": (lambda d: saved(d / "a.gii", Path.write_text, "<GIFTI/>"), open_gifti),
    "ids of responses": (
        lambda d: saved(d / "a.csv", Path.write_text, "id\na\n"),
        lambda p: read_responses(
            saved(p.parent / "r.npy", np.save, np.ones((1, 2))), p, space="voxels"
        ),
    ),
    "wnids": (lambda d: saved(d / "w.txt", Path.write_text, "n01440764\n"), read_wnids),
    "spec": (lambda d: saved(d / "s.yaml", Path.write_text, "notebook: n.ipynb"), load_spec),
}


def refuse_opening(monkeypatch, path, number):
    original = io.open

    def opened(file, *arguments, **options):
        if not isinstance(file, int) and os.fspath(file) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return original(file, *arguments, **options)

    monkeypatch.setattr("io.open", opened)
    monkeypatch.setattr("builtins.open", opened)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_reading_says_path_reason_and_remedy(operation, tmp_path):
    make, read = OPERATIONS[operation]
    path = make(tmp_path)
    for number, remedy in REASONS.items():
        with pytest.MonkeyPatch.context() as patch, pytest.raises(BmflError) as caught:
            refuse_opening(patch, path, number)
            read(path)
        assert isinstance(caught.value, FileError) and caught.value.errno == number
        said = str(caught.value)
        assert said.startswith(f"expected access to {path}; got {os.strerror(number)}")
        assert f"(error {number}). To fix it: " in said and remedy in said


@pytest.mark.parametrize("number", REASONS, ids=errno.errorcode.get)
def test_writing_leaves_the_old_file_and_nothing_else(number, tmp_path, monkeypatch):
    path = saved(tmp_path / "a.json", files.write_json, {"x": 1})

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(FileError, match=REASONS[number]) as caught:
        files.write_json(path, {"x": 2})
    assert str(path) in str(caught.value) and os.strerror(number) in str(caught.value)
    assert files.read_json(path) == {"x": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(FileError, match=REASONS[number]):
        files.store_arrays(tmp_path / "arrays", {"a": np.ones(2)}, {})
    assert not (tmp_path / "arrays").exists()
    with pytest.raises(
        CheckpointError, match=os.strerror(number).replace("(", ".") + "|a full disk"
    ):
        checkpoint.write_bundle(tmp_path, "x", {"a": torch.zeros(2)}, {})
    assert not list(tmp_path.glob("x.*"))


def test_errors_of_another_kind_pass_unchanged():
    for error in (KeyError("x"), RuntimeError("x"), CheckpointError("x"), OSError("no number")):
        with pytest.raises(type(error)) as caught, files.system_errors("here"):
            raise error
        assert caught.value is error
    with (
        pytest.raises(FileError, match="access to here; got Cannot allocate memory"),
        files.system_errors("here"),
    ):
        np.empty(1 << 60, np.uint8)


def test_the_command_lines_end_with_one_sentence(tmp_path, monkeypatch, capsys):
    spec = saved(tmp_path / "s.yaml", Path.write_text, "notebook: n.ipynb")
    refuse_opening(monkeypatch, spec, errno.EIO)
    assert main(["plan", str(spec)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: expected access to {spec}; got Input/output error")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("name", ["manifest.json", "a.npy"])
def test_arrays_that_cannot_be_read_now_are_not_called_damaged(name, number, tmp_path, capsys):
    files.store_arrays(tmp_path / "arrays", {"a": np.ones(2)}, {})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(FileError, match=REASONS[number]):
        refuse_opening(patch, tmp_path / "arrays" / name, number)
        files.load_arrays(tmp_path / "arrays")
    assert "damaged" not in capsys.readouterr().out
    assert files.load_arrays(tmp_path / "arrays")["a"].tolist() == [1, 1]
    (tmp_path / "arrays" / "a.npy").unlink()
    assert files.load_arrays(tmp_path / "arrays") is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["state.json", "spec.json", "record.json"])
def test_a_run_that_cannot_be_read_now_is_not_executed_again(name, number, tmp_path):
    run = Run("s", Notebook(tmp_path / "n.ipynb", {"cells": []}), {}, root=tmp_path)
    folder = folder_of(run)
    folder.mkdir(parents=True)
    files.write_json(folder / "spec.json", {"code_revision": "0", "code_digest": "0"})
    files.write_json(folder / "state.json", {"state": "ended", "problem": "", "cells": []})
    (folder / "executed.ipynb").write_text("{}")
    record(folder)
    assert state_of(run)[0] == "stale"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(FileError, match=REASONS[number]):
        refuse_opening(patch, folder / name, number)
        state_of(run)
    assert state_of(run)[0] == "stale"


LIMITED = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from bmfl_lab import files
from bmfl_lab.errors import BmflError
folder = Path(sys.argv[1])
{prepare}
resource.setrlimit(resource.{limit}, ({value}, {value}))
try:
    {action}
except BmflError as error:
    print(error)
"""
REAL = {
    "many files": (
        "held = [open('/dev/null') for _ in range(60)]; files.write_json(folder / 'a.json', [])",
        ("RLIMIT_NOFILE", "len(held) + 3"),
        "files.read_json(folder / 'a.json')",
        "Too many open files",
        "ulimit -n",
    ),
    "a study of many files": (
        "from PIL import Image\n"
        "from bmfl_lab import load_study\n"
        "for c in 'ab':\n"
        "    (folder / 's' / c).mkdir(parents=True)\n"
        "    [Image.effect_noise((9, 9), 60 + i).save(folder / 's' / c / f'{i}.png') for i in range(12)]\n"
        "load_study(folder / 's'); held = [open('/dev/null') for _ in range(60)]",
        ("RLIMIT_NOFILE", "len(held) + 3"),
        "load_study(folder / 's')",
        "Too many open files",
        "ulimit -n",
    ),
    "a large file": (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        ("RLIMIT_FSIZE", "4096"),
        "files.store_arrays(folder / 'a', {{'a': np.zeros(10_000)}}, {{}})",
        "No space left on device",  # NumPy tells no more than that it could not write all
        "free some space",
    ),
    "a large checkpoint": (
        "import torch\n"
        "from bmfl_lab.training import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        ("RLIMIT_FSIZE", "4096"),
        "checkpoint.write_bundle(folder, 'x', {{'a': torch.zeros(10_000)}}, {{}})",
        "File too large",
        "a folder that can be written",
    ),
    "little memory": (
        "np.save(folder / 'a.npy', np.zeros(1 << 26))\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()",
        ("RLIMIT_AS", "used + (1 << 27)"),
        "files.load_npy(folder / 'a.npy')",
        "Cannot allocate memory",
        "more memory",
    ),
    "little memory for a map": (
        "np.save(folder / 'a.npy', np.zeros(1 << 26))\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()",
        ("RLIMIT_AS", "used + (1 << 27)"),
        "files.load_npy(folder / 'a.npy', mmap=True)",
        "Cannot allocate memory",
        "more memory",
    ),
}


@pytest.mark.parametrize("case", REAL)
def test_limits_of_a_real_process_are_told(case, tmp_path):
    prepare, (limit, value), action, reason, remedy = REAL[case]
    script = LIMITED.format(prepare=prepare, limit=limit, value=value, action=action.format())
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert reason in done.stdout and remedy in done.stdout and str(tmp_path) in done.stdout
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (lambda d: d / ("n" * 300) / "a.json", "File name too long"),
        (lambda d: picture(d / "file") / "below" / "a.json", "Not a directory|File exists"),
        (lambda d: Path("/proc/none/a.json"), "No such file or directory"),
    ],
)
def test_places_that_cannot_hold_a_file_are_refused(path, reason, tmp_path):
    with pytest.raises(FileError, match=reason):
        files.write_json(path(tmp_path), {})


@pytest.mark.parametrize(
    "read",
    [
        lambda: load_spec("~nobody-of-this-name/s.yaml"),
        lambda: load_study("a\0b.json"),
        lambda: files.read_json("a\0b"),
        lambda: files.read_yaml("a\0b"),
        lambda: read_record("a\0b"),
        lambda: files.load_npy("a\0b.npy"),
        lambda: run_folder("a\0b"),
        lambda: run_folder("~nobody-of-this-name/x"),
        lambda: files.write_json("a\0b", {}),
    ],
)
def test_texts_that_can_be_no_path_are_refused(read):
    with pytest.raises(BmflError, match="To fix it: "):
        read()


def test_a_file_name_that_is_not_utf8_is_refused_with_a_sentence_and_fits_into_records(tmp_path):
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    picture(folder / "a.png")
    os.rename(os.fsencode(folder / "a.png"), os.fsencode(folder) + b"/caf\xe9.png")
    with pytest.raises(DataError, match=r"file names in UTF-8.*caf\\xe9\.png.*rename them"):
        load_study(tmp_path / "set")
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(FileError) as caught:
        refuse_opening(patch, odd, errno.EIO)
        decode_image(odd)
    assert "caf\\udce9.png; got Input/output error" in str(caught.value).encode("utf-8").decode()
    files.write_sealed_json(tmp_path / "a.json", {"name": odd.name})
    assert files.read_sealed_json(tmp_path / "a.json") == {"name": odd.name}
