"""A notebook with a widget served as an app by ``make app``, for a colleague without Python."""

import shutil
import sys
from urllib.parse import urlsplit

import jupyter_page
import pytest
from widget_page import SETUP, WIDGETS

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_make_app_serves_a_notebook_with_its_widget_and_no_code(chrome, models, tmp_path):
    pytest.importorskip("voila")
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    name = jupyter_page.Lab("", "", tmp_path).write(
        "app.ipynb", [SETUP.format(root=models), WIDGETS["ablation"]]
    )
    port, token = jupyter_page.free_port(), "of-the-test"
    command = ["make", "-C", str(jupyter_page.ROOT), "-o", "setup", "app", f"VENV={sys.prefix}"]
    command += [f"LAB_CONFIG={tmp_path / 'config'}"]
    command += [
        f"NOTEBOOK={tmp_path / name}",
        f"APP_ARGS=--no-browser --port={port} --token={token}",
    ]
    url, context = (
        f"http://127.0.0.1:{port}",
        chrome.new_context(viewport={"width": 1280, "height": 1400}),
    )
    with (
        jupyter_page.serving(
            command, f"{url}/static/voila.js", tmp_path / "voila.log", tmp_path, answer=False
        ),
        context,
    ):
        page, errors, asked, sockets = context.new_page(), [], [], []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("request", lambda r: asked.append(r))
        page.on("websocket", lambda w: sockets.append(w))
        refused = page.goto(url, timeout=300_000)
        assert refused.status == 403 or "login" in page.url, (
            "the app answers nobody without its token"
        )
        page.goto(f"{url}/?token={token}", timeout=300_000, wait_until="commit")
        page.wait_for_selector(".bmfl-frame .js-plotly-plot .main-svg", timeout=300_000)
        page.wait_for_timeout(3000)
        frame = page.locator(".bmfl-frame")
        before = frame.locator(".bmfl-status").inner_text()
        frame.get_by_label("HVC", exact=True).check()
        page.wait_for_function(
            "(before) => document.querySelector('.bmfl-status').innerText !== before",
            arg=before,
            timeout=60_000,
        )
        page.wait_for_timeout(1500)
        jupyter_page.ARTEFACTS.mkdir(exist_ok=True)
        page.screenshot(path=jupyter_page.ARTEFACTS / "voila.png", full_page=True)
        assert page.locator(".jp-InputArea").count() == 0, "an app shows no code"
        assert page.get_by_text("Error displaying widget").count() == 0
        assert errors == []
        # what the page's policy forbids never leaves the browser
        sent = [r for r in asked if r.url.startswith("http") and r.failure != "csp"]
        hosts = {urlsplit(r.url).hostname for r in (*sent, *sockets)}
        assert hosts == {"127.0.0.1"}, [
            (r.url, r.failure) for r in sent if "127.0.0.1" not in r.url
        ]
    assert (jupyter_page.ARTEFACTS / "voila.png").stat().st_size > 20_000
