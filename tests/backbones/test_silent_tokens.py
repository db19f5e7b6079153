"""Tokens that are zero throughout come back as exact zeros, and no type of storage divides by their range."""

import numpy as np
import pytest
import torch
from extraction_process import stimuli as noise

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.errors import ConfigError


@pytest.fixture(scope="module")
def silent():
    backbone = load_backbone("vit_tiny14_reg", image_size=28)
    with torch.no_grad():
        backbone.norm.weight[:] = 0
        backbone.norm.bias[:] = 0
    backbone.weights_hash = "silent"
    return backbone


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["patches", "pooled:1", "cls+mean"])
def test_zero_tokens_are_stored_as_zeros(silent, kind, dtype, tmp_path):
    stored = FeatureStore(tmp_path).get(silent, noise(5), kind, dtype=dtype)
    for values in (stored.cls, stored.mean, stored.patches):
        if values is not None:
            assert values.dtype == dtype and not np.any(values)
    again = FeatureStore(tmp_path).get(silent, noise(5), kind, dtype=dtype)
    assert np.array_equal(again.features(), np.zeros_like(again.features()))


def test_smallest_numbers_of_the_stored_type_survive(tmp_path):
    backbone = load_backbone("vit_tiny14_reg", image_size=28)
    with torch.no_grad():
        backbone.norm.weight[:] = 0
        backbone.norm.bias[:] = 2.0**-24  # the smallest float16 above zero
    backbone.weights_hash = "smallest"
    stored = FeatureStore(tmp_path).get(backbone, noise(3), "cls")
    assert np.all(stored.cls == np.float16(2.0**-24))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "bfloat16", "float64"])
def test_types_that_would_need_a_scale_are_refused(silent, dtype, tmp_path):
    with pytest.raises(ConfigError, match="a stored dtype 'float16' or 'float32'"):
        FeatureStore(tmp_path).get(silent, noise(3), dtype=dtype)
