"""A real JupyterLab on the loopback interface, a headless Chromium, and a page that is watched."""

import contextlib
import json
import os
import secrets
import shutil
import signal
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
# The name of the news setting, and windowing off so that every cell of a notebook stays in the
# page.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync"]
# Puts a cell at the end of the open notebook, and runs the active one.
INSERT = """(code) => { const cells = window.jupyterapp.shell.currentWidget.content;
    cells.activeCellIndex = cells.widgets.length - 1; window.jupyterapp.commands.execute('notebook:insert-cell-below');
    cells.activeCell.model.sharedModel.setSource(code) }"""
RUN = "() => { window.jupyterapp.commands.execute('notebook:run-cell') }"
# What the figures and pictures of the k-th widget of a page show.
DRAWN = """(k) => { const frame = document.querySelectorAll('.bmfl-frame')[k], all = (s) => [...frame.querySelectorAll(s)];
    return [...all('.js-plotly-plot').map(e => JSON.stringify(e.data.map(t => [t.x, t.y, t.z, t.intensity]))),
            ...all('.bmfl-picture img').map(e => e.src)].join() }"""


def chromium():
    return next(
        (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))),
        None,
    )


@dataclass
class Lab:
    url: str
    token: str
    root: Path

    def ask(self, method, place, body=None):
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{place}", body, headers, method=method)
        return urllib.request.urlopen(request, timeout=20).read()

    def put_setting(self, name, value):
        self.ask("PUT", f"lab/api/settings/{name}", json.dumps({"raw": json.dumps(value)}).encode())

    def stop_kernels(self):
        for kernel in json.loads(self.ask("GET", "api/kernels")):
            self.ask("DELETE", f"api/kernels/{kernel['id']}")

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
    port = free_port()
    token = secrets.token_hex(16)
    own = {
        k: str(folder / k.lower())
        for k in ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    }
    environment = {
        **os.environ,
        **own,
        "JUPYTER_CONFIG_PATH": str(config.parent),
        "JUPYTER_CONFIG_DIR": str(folder / "own"),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
    ]
    command += [
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
    ]
    command += [
        "--LabApp.expose_app_in_browser=True"
    ]  # so that a test can change the theme of an open page
    url = f"http://127.0.0.1:{port}"
    with serving(command, f"{url}/api?token={token}", folder / "lab.log", root, environment):
        yield Lab(url, token, root)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(command, url, log, cwd, environment=None, answer=True):
    """Run a server and all it starts until the block ends; enter the block once it answers, as `wait_for`."""
    with log.open("w") as said:
        process = subprocess.Popen(
            command, env=environment, cwd=cwd, stdout=said, stderr=said, start_new_session=True
        )
        try:
            wait_for(url, process, log, answer)
            yield process
        finally:
            # all of them, and only then by force: a server needs a moment to end its kernels
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                for _ in range(80):
                    process.poll()
                    os.killpg(process.pid, 0)
                    time.sleep(0.25)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


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

    def change(self, place, act):
        """Do something and wait until the figures of a widget, by its place on the page, show something else."""
        before = self.page.evaluate(DRAWN, place)
        act(self.page.locator(".bmfl-frame").nth(place))
        self.page.wait_for_function(
            f"([k, before]) => ({DRAWN})(k) !== before", arg=[place, before], timeout=60_000
        )

    def press(self, frame, label, key="ArrowRight"):
        """Press a key on a slider."""
        row = frame.locator(
            ".widget-slider", has=self.page.locator(f".widget-label:text-is('{label}')")
        )
        row.locator(".noUi-handle").focus()
        self.page.keyboard.press(key)

    def kernel_errors(self):
        found = self.page.locator(
            '[data-mime-type="application/vnd.jupyter.error"]'
        ).all_inner_texts()
        return found + self.page.locator(".bmfl-error").all_inner_texts()

    def shoot(self, locator, name):
        ARTEFACTS.mkdir(exist_ok=True)
        locator.scroll_into_view_if_needed()
        self.page.wait_for_timeout(700)
        locator.screenshot(path=ARTEFACTS / f"{name}.png")


# Errors without anything being wrong with the page. anywidget gives up on changes of a model after
# two seconds of a busy page; the figures' changes travel in plain labels. JupyterLab puts the address
# of an attached picture into the page before it replaces it by the picture.
HARMLESS = ("favicon.ico", "[anywidget] Failed to initialize model", "attachment:")
# What Chromium warns of when it draws a surface without a graphics card; any other warning about
# WebGL is reported.
SOFTWARE_DRAWING = (
    "GPU stall due to ReadPixels",
    "Automatic fallback to software WebGL has been deprecated",
)


def worth_reporting(kind, text):
    """Whether a console message says that something is wrong with the page."""
    if kind == "warning" and "WebGL" in text:
        return not any(known in text for known in SOFTWARE_DRAWING)
    return kind == "error" and not any(known in text for known in HARMLESS)


@contextlib.contextmanager
def watching(chrome, lab):
    """Yield a function that opens a page of a width and a theme and records requests and errors."""
    contexts = []

    def opened(width=1280, height=1500, dark=False):
        lab.put_setting(
            "@jupyterlab/apputils-extension:themes",
            {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"},
        )
        context = chrome.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        watched = Watched(context.new_page())
        page = watched.page
        page.on(
            "request",
            lambda r: (
                watched.hosts.add(urlsplit(r.url).hostname or "")
                if r.url.startswith(("http", "ws"))
                else None
            ),
        )
        page.on("websocket", lambda w: watched.hosts.add(urlsplit(w.url).hostname))
        page.on(
            "pageerror",
            lambda e: watched.errors.append(str(e)) if worth_reporting("error", str(e)) else None,
        )
        page.on(
            "console",
            lambda m: (
                watched.errors.append(m.text)
                if worth_reporting(m.type, f"{m.text} {m.location}")
                else None
            ),
        )
        return watched

    try:
        yield opened
    finally:
        for context in contexts:
            context.close()
