"""A JupyterLab and a Chromium for all browser tests, and pages that are watched."""

import dataclasses

import jupyter_page
import pytest
import widget_page

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.training import presets, train_brain_encoder, train_fusion


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    if jupyter_page.chromium() is None:
        pytest.skip("no Chromium on this machine")
    with jupyter_page.running_lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture(scope="session")
def chrome():
    pytest.importorskip("playwright.sync_api")
    with jupyter_page.running_chrome() as browser:
        yield browser


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A brain encoder and two models of the planted study, trained once for all pages."""
    root = tmp_path_factory.mktemp("models")
    study, store = load_study("planted"), FeatureStore(root / "features")
    config, encoder_config = presets("tiny")
    encoder = train_brain_encoder(encoder_config, study, store=store)
    encoder.save(root / "encoder")
    for head in ("fusion", "backbone"):
        train_fusion(
            dataclasses.replace(config, head=head), study, encoder=encoder, store=store
        ).save(root / head)
    return root


def _watch(chrome, lab):
    with jupyter_page.watching(chrome, lab) as opened:
        yield opened


watch = pytest.fixture(_watch, name="watch")
watch_module = pytest.fixture(_watch, scope="module", name="watch_module")


@pytest.fixture(scope="module")
def opened(lab, watch_module, models):
    return widget_page.Page(lab, watch_module(width=1280), models)
