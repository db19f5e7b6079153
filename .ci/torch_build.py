"""Choose the build of torch that the set-up installs; print pip's options for it.

``python .ci/torch_build.py`` prints the options on standard output, for ``pip install``, and one
sentence on standard error that names the build and about how much it downloads. Only the standard
library is used, because nothing is installed yet.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

CONSTRAINTS = ".ci/constraints-cpu.txt"
# PyPI's wheels for Linux are CUDA builds; this index of PyTorch holds the CPU builds.
INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
PROBE_SECONDS = 3
CPU, CUDA = "about 0.2 GB to download", "about 3 GB to download"


def has_gpu():
    """Return whether nvidia-smi lists a GPU."""
    tool = shutil.which("nvidia-smi")
    return bool(tool) and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def answers(index):
    """Return whether a wheel index answers a request for torch within the probe's time."""
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=PROBE_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def pip_would_take(options):
    """Return the file name of the torch wheel that pip would install, or None if it finds none.

    pip resolves torch alone and installs nothing; for a wheel of an index it reads the metadata.
    """
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--no-deps", "--quiet", "--disable-pip-version-check", "--report", "-"]
    done = subprocess.run([*command, *options, "torch"], capture_output=True, text=True)
    if done.returncode:
        return None
    (torch,) = json.loads(done.stdout)["install"]
    return torch["download_info"]["url"].rsplit("/", 1)[-1].replace("%2B", "+")


def choose():
    """Return pip's options and the sentence about the build."""
    if has_gpu():
        return [], f"torch with CUDA, as pip chooses (a GPU was found; {CUDA})"
    options = ["-c", CONSTRAINTS]
    if answers(INDEX):
        options += ["--extra-index-url", INDEX]
        return options, f"the CPU build of torch from PyTorch's own wheel index ({CPU})"
    wheel = pip_would_take(options)
    if wheel is None:
        return options, "pip finds no torch for this Python; the installation will say why"
    if "+cpu" in wheel or "linux" not in wheel:
        return options, f"the CPU build {wheel} ({CPU})"
    return options, (
        f"{wheel}, which PyPI builds with CUDA ({CUDA}, 6 GB on disk), because PyTorch's own "
        f"wheel index did not answer within {PROBE_SECONDS} s"
    )


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])
    pip_options, sentence = choose()
    print(*pip_options)
    print(f"== set-up: {sentence}", file=sys.stderr)
