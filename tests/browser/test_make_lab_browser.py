"""The start page of ``make lab``: the quickstart opens at once and nobody is asked about news."""

import os
import shutil
import sys

import jupyter_page
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]


def test_make_lab_opens_the_quickstart_and_asks_about_no_news(chrome, tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # in a folder of its own, so that opening the notebook cannot change that of the project
    root, own = tmp_path / "root", tmp_path / "own"
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(jupyter_page.ROOT / "notebooks" / "00_quickstart.ipynb", root / "notebooks")
    shutil.copy(jupyter_page.ROOT / "pyproject.toml", root)
    port, token = jupyter_page.free_port(), "of-the-test"
    command = [
        "make",
        "-f",
        str(jupyter_page.ROOT / "Makefile"),
        "-o",
        "setup",
        "lab",
        f"VENV={sys.prefix}",
    ]
    command += [f"LAB_CONFIG={tmp_path / 'config'}", "TORCH_OPTIONS="]
    command += [
        f"LAB_ARGS=--no-browser --allow-root --port={port} --IdentityProvider.token={token}"
    ]
    folders = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "IPYTHONDIR",
    )
    environment = {**os.environ, **{k: str(own / k.lower()) for k in folders}}
    url = f"http://localhost:{port}"
    running = jupyter_page.serving(
        command, f"{url}/api?token={token}", tmp_path / "lab.log", root, environment
    )
    with running, chrome.new_context(viewport={"width": 1280, "height": 1200}) as context:
        page, asked = context.new_page(), []
        page.on("request", lambda r: asked.append(r.url))
        page.goto(f"{url}/?token={token}", timeout=120_000)
        page.wait_for_selector(".jp-Notebook", timeout=120_000)
        page.wait_for_timeout(5000)
        assert page.locator(".jp-NotebookPanel h1").inner_text().startswith("Quickstart")
        assert (
            page.locator(".lm-TabBar-tab.jp-mod-current .lm-TabBar-tabLabel").inner_text()
            == "00_quickstart.ipynb"
        )
        page.screenshot(path=jupyter_page.ARTEFACTS / "make-lab.png")
        assert page.get_by_text("official Jupyter news").count() == 0
        assert not [a for a in asked if "/lab/api/news" in a or "/lab/api/update" in a]
        assert all(a.startswith((url, "data:", "blob:", "attachment:")) for a in asked), asked
