"""Work on a generated study asks the network for nothing, in this process and in those that it starts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUARD = """
import sys

def watch(event, arguments):
    if event == "socket.getaddrinfo" or event == "urllib.Request":
        raise SystemExit(f"asked for {arguments}")
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        if not str(arguments[1][0]).startswith(("127.", "::1")):
            raise SystemExit(f"connected to {arguments[1]}")

sys.addaudithook(watch)
"""
WORK = """
import importlib, pathlib, sys, warnings
warnings.simplefilter("ignore")
root = pathlib.Path(sys.argv[1])
for path in sorted(root.glob("bmfl_lab/**/*.py")):
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    if not name.endswith(("__main__", "worker")):
        importlib.import_module(name)
from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.config import replace
from bmfl_lab.evaluation import evaluate_ood
from bmfl_lab.training import train_brain_encoder, train_fusion, LoopConfig
from bmfl_lab.training.encoder import tiny as tiny_encoder
from bmfl_lab.training.recipes import tiny
study = load_study("planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20)
study.summary()
store = FeatureStore(pathlib.Path(sys.argv[2]) / "store")
encoder = train_brain_encoder(
    replace(tiny_encoder("ridge"), tokens="patches", pooling="grid"), study, store=store,
    folder=pathlib.Path(sys.argv[2]) / "encoder", device="cpu",
)
model = train_fusion(
    tiny(kind="pooled:4", loop=LoopConfig(epochs=1, batch_size=32)), study, encoder=encoder,
    store=store, device="cpu",
)
evaluate_ood({"fusion": model}, study, shifts=(), sets=("test",), n_boot=10)
print("done")
"""


def run(code, folder):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "BMFL_HOME": str(folder / "home"),
        "HF_HOME": str(folder / "hub"),
    }
    command = [sys.executable, "-c", GUARD + code, str(ROOT), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=290)


def test_the_guard_sees_an_attempt(tmp_path):
    done = run("import urllib.request\nurllib.request.urlopen('http://192.0.2.1/x')", tmp_path)
    assert done.returncode == 1 and "asked for" in done.stderr
    done = run("import socket\nsocket.create_connection(('192.0.2.1', 80))", tmp_path)
    assert done.returncode == 1 and ("connected to" in done.stderr or "asked for" in done.stderr)


def test_training_and_evaluating_on_a_generated_study_connects_to_nothing(tmp_path):
    done = run(WORK, tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "done", done.stderr[-2000:]
