"""The remedies of `widgets` and of records, configurations, registries and the machine."""

import logging
import pwd
import re

import pandas as pd
import torch
from following import follows
from jupyter_server.auth import passwd
from jupyter_server.serverapp import ServerApp
from notebook_example import write_notebook

from bmfl_lab import records
from bmfl_lab.config import LoopConfig, require_list
from bmfl_lab.errors import ConfigError
from bmfl_lab.files import read_json, write_json
from bmfl_lab.records import Record, check_same_weights, read_record
from bmfl_lab.registry import Registry
from bmfl_lab.runs.__main__ import _parser
from bmfl_lab.runs.notebook import read_notebook
from bmfl_lab.runtime import DEVICES, home, pick_device
from widgets import ood, runs
from widgets.lab import TokenRequired

ROW = dict(unit="fraction", split="test", n=4, selection="none")


def made(digest=""):
    """Return a record of one row, of a run with weights of this digest."""
    record = Record("nb", {}, {"name": "planted", "fingerprint": "0", "simulated": True})
    record.add("accuracy", 0.5, **ROW)
    if digest:
        weights = {"name": "dinov2_vits14_reg", "weights": f"file {digest}", "sha256": digest}
        record.extra["backbones"] = [weights]
    return record


@follows(
    ("records.py", "add rows before finishing the record"),
    ("records.py", "give the path of a record.json that a run wrote"),
    ("records.py", "run the notebook again"),
    ("records.py", "update bmfl_lab, which wrote this record in a newer version"),
)
def test_records(folder, env):
    record = Record("nb", {}, {"name": "planted", "fingerprint": "0", "simulated": True})
    yield lambda: record.finish(folder)
    record.add("accuracy", 0.5, **ROW)
    paths = [record.finish(folder)]

    paths.append(folder / "other.json")
    write_json(paths[-1], {"state": "ended"})
    remedy = yield lambda: read_record(paths[-1])
    paths.append(folder / re.search(r"\w+\.json", remedy)[0])
    read_record(paths[-1])

    written = {k: v for k, v in read_json(paths[0]).items() if k not in ("sealed", "seal")}
    del written["rows"]
    write_json(paths[0], written)
    yield lambda: read_record(paths[0])
    made().finish(folder)
    read_record(paths[0])

    env.setattr(records, "SCHEMA", records.SCHEMA - 1)
    env.setattr(records, "READABLE", (records.SCHEMA,))
    yield lambda: read_record(paths[0])
    env.undo()


@follows(
    (
        "records.py",
        "execute the older runs again (run --force): results of original weights and of a "
        "stand-in are not compared",
    )
)
def test_runs_with_other_weights(folder, env):
    found = {"older": made("1" * 64), "newer": made("2" * 64)}
    remedy = yield lambda: check_same_weights(found)
    option = re.search(r"\(run (--\w+)\)", remedy)[1]
    assert _parser().parse_args(["run", "older", option]).force
    found["older"] = made("2" * 64)


@follows(
    ("config.py", "write {}={}"),
    ("config.py", "write each of them once, for example {}={}"),
    ("config.py", "pass values in these ranges to LoopConfig"),
)
def test_options(folder, env):
    given = {"seeds": "0 1"}

    def call():
        return require_list("seeds", given["seeds"], int)

    remedy = yield call
    given["seeds"] = eval(re.search(r"seeds=(.*)", remedy)[1])
    call()
    given["seeds"] = [0, 0]
    remedy = yield call
    given["seeds"] = eval(re.search(r"seeds=(.*)", remedy)[1])
    call()
    values = {"epochs": 0}
    yield lambda: LoopConfig(**values)
    values["epochs"] = 1


@follows(
    ("errors.py", "did you mean {}?"),
    ("errors.py", "choose one of {}"),
    ("errors.py", "copy {} from the folder: its accents are stored as other characters"),
    ("errors.py", "check the spelling and the place, as there is none to choose from"),
)
def test_names_that_are_not_known(folder, env):
    registry, names = Registry("model"), ["fusoin"]
    for name in ("fusion", "ridge"):
        registry.register(name)(print)

    def call():
        return registry[names[-1]]

    remedy = yield call
    names.append(re.search(r"'(\w+)'", remedy)[1])
    call()
    names.append("transformer")
    remedy = yield call
    names += re.search(r"one of (.*)", remedy)[1].split(", ")
    call()

    composed, decomposed = "caf\u00e9", "cafe\u0301"
    registry.register(decomposed)(print)
    names.append(composed)
    remedy = yield call
    names.append(re.search(r"'(\w+\u0301)'", remedy)[1])
    call()

    (folder / "empty").mkdir()
    paths = [folder / "empty" / "a.ipynb"]
    yield lambda: read_notebook(paths[-1])
    paths.append(write_notebook(folder / "a.ipynb", "n: int = 3"))


@follows(("registry.py", "choose another name"))
def test_a_name_that_is_taken(folder, env):
    registry, names = Registry("shift"), ["masked"]
    registry.register("masked")(print)
    yield lambda: registry.register(names[-1])
    names.append("masked again")


@follows(
    ("runtime.py", "choose one of them"),
    ("runtime.py", "use device='auto' or 'cpu'"),
    ("runtime.py", "use device='auto' or 'cpu'"),
)
def test_devices(folder, env):
    devices = ["gpu"]
    yield lambda: pick_device(devices[-1])
    devices.append(DEVICES[0])
    pick_device(devices[-1])
    env.setattr(torch.cuda, "is_available", lambda: False)
    for i in range(2):
        devices.append("cuda")
        remedy = yield lambda: pick_device(devices[-1])
        devices.append(re.findall(r"'(\w+)'", remedy)[i])
        pick_device(devices[-1])


@follows(
    (
        "runtime.py",
        "set the environment variable BMFL_HOME to a folder for downloads and caches",
    )
)
def test_a_user_without_a_home(folder, env):
    def unknown(_):
        raise KeyError("no such user")

    env.setattr(pwd, "getpwuid", unknown)
    for name in ("BMFL_HOME", "XDG_CACHE_HOME", "HOME"):
        env.delenv(name, raising=False)
    remedy = yield home
    env.setenv(re.search(r"variable (\w+)", remedy)[1], str(folder))
    assert home() == folder


class Stopping(logging.Handler):
    """Make an error of what the log calls critical, where the server would stop."""

    def emit(self, record):
        if record.levelno >= logging.CRITICAL:
            raise ConfigError(record.getMessage())


def serve(folder, *arguments):
    """Make JupyterLab's server as the command line does, up to where it listens."""
    ServerApp.clear_instance()
    app = ServerApp.instance()
    app.log.addHandler(stopping := Stopping())
    options = ["--allow-root", "--no-browser", f"--ServerApp.root_dir={folder}", *arguments]
    options.append("--ServerApp.identity_provider_class=widgets.lab.TokenRequired")
    try:
        app.initialize(options, find_extensions=False, new_httpserver=False)
        assert isinstance(app.identity_provider, TokenRequired)
    finally:
        app.log.removeHandler(stopping)
        ServerApp.clear_instance()


@follows(
    (
        "widgets/lab.py",
        "leave out --ServerApp.token=, so that Jupyter makes a token of its own",
    ),
    (
        "widgets/lab.py",
        "set one with 'jupyter server password', or leave out --ip and connect with "
        "'ssh -L 8888:localhost:8888' and the name of this machine",
    ),
    (
        "widgets/lab.py",
        "set one with 'jupyter server password', or leave out --ip and connect with "
        "'ssh -L 8888:localhost:8888' and the name of this machine",
    ),
)
def test_a_server_without_token_or_password(folder, env):
    for name in ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR"):
        env.setenv(f"JUPYTER_{name}", str(folder / name))
    env.delenv("JUPYTER_TOKEN", raising=False)
    arguments = ["--ServerApp.token="]

    def call():
        serve(folder, *arguments)

    remedy = yield call
    arguments.remove(re.search(r"leave out (\S+=),", remedy)[1])
    call()
    arguments.append("--ip=0.0.0.0")
    yield call
    # where the command writes what it asks for
    hashed = {"IdentityProvider": {"hashed_password": passwd("long enough", algorithm="sha1")}}
    write_json(folder / "CONFIG_DIR" / "jupyter_server_config.json", hashed)
    call()
    (folder / "CONFIG_DIR" / "jupyter_server_config.json").unlink()
    remedy = yield call
    option = re.search(r"leave out (--\w+)", remedy)[1]
    arguments[:] = [a for a in arguments if not a.startswith(option)]


@follows(("widgets/ood.py", "choose one of them"))
def test_a_model_that_was_not_evaluated(folder, env):
    columns = ["model", "split", "shift", "severity", "id", "correct"]
    rows = [(m, "test", "masked", 3, i, m == i) for m in ("a", "b") for i in ("a", "b")]
    source, models = ood.Source(pd.DataFrame(rows, columns=columns)), ["c"]
    yield lambda: ood.select(ood.State(model=models[-1]), source)
    models.append(source.models[0])


@follows(
    ("widgets/runs.py", "run a spec first"),
    ("widgets/runs.py", "shorten or empty the filter"),
    ("widgets/runs.py", "shorten or empty the filter"),
)
def test_runs_to_browse(folder, env):
    texts = [""]

    def call():
        return runs.select(runs.State(text=texts[-1]), runs.Source(folder))

    yield call
    made().finish(folder / "probe" / "probe-1")
    call()
    for shorter in ("planted", ""):
        texts.append("planted, 1")
        yield call
        texts.append(shorter)
        call()
