"""A notebook with a widget served as an app by voila, for a colleague without Python."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import jupyter_page
import pytest
from test_widgets_browser import SETUP, WIDGETS

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_voila_serves_a_notebook_with_its_widget_and_no_code(chrome, models, tmp_path):
    pytest.importorskip("voila")
    page_of = jupyter_page.Lab("", "", tmp_path)
    name = page_of.write("app.ipynb", [SETUP.format(root=models), WIDGETS["ablation"]])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "voila", str(tmp_path / name), "--no-browser", f"--port={port}"]
    command += ["--Voila.ip=127.0.0.1", "--VoilaExecutor.skip_cells_with_tag=none"]
    log = (tmp_path / "voila.log").open("w")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    context = chrome.new_context(viewport={"width": 1280, "height": 1400})
    try:
        jupyter_page.wait_for(f"http://127.0.0.1:{port}/static/voila.js", process, tmp_path / "voila.log", answer=False)
        page, errors = context.new_page(), []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(f"http://127.0.0.1:{port}/", timeout=300_000, wait_until="commit")
        page.wait_for_selector(".bmfl-frame .js-plotly-plot .main-svg", timeout=300_000)
        page.wait_for_timeout(3000)
        frame = page.locator(".bmfl-frame")
        before = frame.locator(".bmfl-status").inner_text()
        frame.get_by_label("HVC", exact=True).check()
        page.wait_for_function(
            "(before) => document.querySelector('.bmfl-status').innerText !== before", arg=before, timeout=60_000
        )
        page.wait_for_timeout(1500)
        jupyter_page.ARTEFACTS.mkdir(exist_ok=True)
        page.screenshot(path=jupyter_page.ARTEFACTS / "voila.png", full_page=True)
        assert page.locator(".jp-InputArea").count() == 0, "an app shows no code"
        assert errors == []
    finally:
        context.close()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        log.close()
    assert Path(jupyter_page.ARTEFACTS / "voila.png").stat().st_size > 20_000
