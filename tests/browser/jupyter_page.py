"""A real JupyterLab on the loopback interface, a headless Chromium, and a page that is watched."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import nbformat

ROOT = Path(__file__).resolve().parents[2]
ARTEFACTS = ROOT / "tests" / "artefacts"
# The name of the news setting, and windowing off so that every cell of a notebook stays in the page.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def chromium():
    return next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


@dataclass
class Lab:
    url: str
    token: str
    root: Path

    def put_setting(self, name, value):
        body = json.dumps({"raw": json.dumps(value)}).encode()
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/lab/api/settings/{name}", body, headers, method="PUT")
        urllib.request.urlopen(request, timeout=20).read()

    def write(self, name, cells):
        """Write a notebook of code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
        }
        nbformat.write(notebook, self.root / name)
        return name


@contextlib.contextmanager
def running_lab(folder):
    """Run a JupyterLab of its own in a folder and yield it."""
    root, config = folder / "root", folder / "config" / "labconfig"
    root.mkdir()
    config.mkdir(parents=True)
    (config / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    own = {k: str(folder / k.lower()) for k in ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    environment = {
        **os.environ,
        **own,
        "JUPYTER_CONFIG_PATH": str(config.parent),
        "JUPYTER_CONFIG_DIR": str(folder / "own"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    command += ["--LabApp.expose_app_in_browser=True"]  # so that a test can change the theme of an open page
    log = (folder / "lab.log").open("w")
    process = subprocess.Popen(command, env=environment, cwd=root, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/api?token={token}", process, folder / "lab.log")
        yield Lab(url, token, root)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
        log.close()


def wait_for(url, process, log, answer=True):
    """Wait until a server answers, with a page or, without `answer`, with anything."""
    for _ in range(480):
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except urllib.error.HTTPError:
            if not answer:
                return b""
        except OSError:
            pass
        assert process.poll() is None, log.read_text()[-2000:]
        time.sleep(0.25)
    raise AssertionError(log.read_text()[-2000:])


@contextlib.contextmanager
def running_chrome():
    """Run a headless Chromium and yield it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page and what happened on it."""

    page: object
    hosts: set = field(default_factory=set)
    errors: list = field(default_factory=list)

    def run_all(self, lab, name, timeout=300):
        page = self.page
        page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
        page.wait_for_selector(".jp-Notebook", timeout=90_000)
        page.wait_for_selector("text=/Python 3.*\\| Idle/", timeout=90_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        self.settle(timeout)

    def settle(self, timeout=300):
        """Wait until no cell waits or runs and the kernel is idle."""
        page = self.page
        script = """() => ![...document.querySelectorAll('.jp-InputArea-prompt')].some(e => e.textContent.includes('*'))
                    && /\\| Idle/.test(document.querySelector('#jp-main-statusbar').textContent)"""
        page.wait_for_timeout(1500)
        page.wait_for_function(script, timeout=timeout * 1000)
        page.wait_for_timeout(800)

    def kernel_errors(self):
        found = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
        return found + self.page.locator(".bmfl-error").all_inner_texts()

    def shoot(self, locator, name):
        ARTEFACTS.mkdir(exist_ok=True)
        locator.scroll_into_view_if_needed()
        self.page.wait_for_timeout(700)
        locator.screenshot(path=ARTEFACTS / f"{name}.png")


# What Chromium says without anything being wrong with the page.
HARMLESS = ("GPU stall due to ReadPixels", "favicon", "WebGL", "GL Driver", "Autofocus", "willReadFrequently")
# anywidget gives up on changes of a model after two seconds of a busy page; the figures' changes travel in plain labels.
HARMLESS += ("[anywidget] Failed to initialize model",)


@contextlib.contextmanager
def watching(chrome, lab):
    """Yield a function that opens a page of a width and a theme and records requests and errors."""
    contexts = []

    def opened(width=1280, height=1500, dark=False):
        lab.put_setting(
            "@jupyterlab/apputils-extension:themes", {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}
        )
        context = chrome.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        watched = Watched(context.new_page())
        page = watched.page
        page.on(
            "request",
            lambda r: watched.hosts.add(urlsplit(r.url).hostname or "") if r.url.startswith(("http", "ws")) else None,
        )
        page.on("websocket", lambda w: watched.hosts.add(urlsplit(w.url).hostname))
        page.on(
            "pageerror", lambda e: None if any(h in str(e) for h in HARMLESS) else watched.errors.append(str(e))
        )
        page.on(
            "console",
            lambda m: (
                watched.errors.append(m.text)
                if m.type == "error" and not any(h in m.text + str(m.location) for h in HARMLESS)
                else None
            ),
        )
        return watched

    try:
        yield opened
    finally:
        for context in contexts:
            context.close()
