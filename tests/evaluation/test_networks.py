"""Decoding by network on a cortex with known networks."""

from dataclasses import replace

import numpy as np
import pytest
from ablation_truth import ablate

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.fslr import Cortex
from bmfl_lab.data.nod_planted import cortex_axis, planted_cortex, write_dlabel
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.networks import decode_by_region, network_atlas

NETWORKS = ("Visual", "Default", "Limbic")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    cortex = planted_cortex()
    n = len(cortex)
    masks = {name: np.arange(n) % 4 == k for k, name in enumerate(NETWORKS)}
    path = tmp_path_factory.mktemp("networks") / "networks.dlabel.nii"
    write_dlabel(path, masks)
    whole = Atlas(cortex.hemisphere, {}, cortex.index, "fsLR32k")
    return network_atlas(whole, path)


def respond(atlas, name, n=180):
    """Return embeddings, and responses in which one network alone tells of them."""
    draw = np.random.default_rng(0)
    embeddings = draw.normal(size=(n, 8))
    responses = draw.normal(size=(n, atlas.n_vertices))
    if name:
        mask = atlas.select(name)
        responses[:, mask] += embeddings @ draw.normal(size=(8, mask.sum()))
    return responses, embeddings, np.arange(130), np.arange(130, n)


def named(table):
    return set(table[(table["effect"] > 0) & (table["p_holm"] <= 0.05)]["region"])


@pytest.mark.parametrize("name", ["Default", ""])
def test_the_planted_network_is_named_and_no_other(atlas, name):
    table = decode_by_region(*respond(atlas, name), atlas, n_draws=1)
    assert set(table["region"]) == set(NETWORKS)
    assert named(table) == ({name} if name else set())
    if name:
        own = table[table["region"] == name].set_index("mode")
        assert own.loc["alone", "value"] > 0.9 and own.loc["left_out", "value"] < 0.68
    else:
        assert abs(table["value"] - 0.5).max() < 0.12


def test_networks_keep_vertices_and_borders(atlas):
    assert atlas.n_vertices == len(planted_cortex()) and atlas.groups == {}
    assert np.array_equal(np.flatnonzero(atlas.select("Visual")), np.arange(0, 144, 4))


def test_parcels_of_schaefer_are_joined_to_their_networks(atlas, tmp_path):
    n = atlas.n_vertices
    names = ("17Networks_LH_VisCent_ExStr_1", "17Networks_LH_VisCent_ExStr_2", "7Networks_RH_Vis_1")
    path = tmp_path / "schaefer.dlabel.nii"
    write_dlabel(path, {name: np.arange(n) % 3 == k for k, name in enumerate(names)})
    found = network_atlas(atlas, path)
    assert found.present == ("VisCent", "Vis")
    assert np.array_equal(found.select("VisCent"), np.arange(n) % 3 < 2)


def test_the_planted_network_is_named_in_a_fusion_whose_networks_are_lesioned(tmp_path):
    groups = {"Early": ("V1", "V2", "V3"), "Ventral": ("hV4", "LO"), "Default": ("FFC", "PHA")}

    def as_networks(atlas):
        left, right = (3 * np.arange(np.sum(atlas.hemisphere == side)) for side in (0, 1))
        masks = {name: atlas.select(rois) for name, rois in groups.items()}
        path = tmp_path / "networks.dlabel.nii"
        write_dlabel(path, masks, cortex_axis(Cortex(left, right)))
        index = np.concatenate([left, right])
        return network_atlas(replace(atlas, surface_index=index, mesh="fsLR32k"), path)

    found = ablate(
        tmp_path / "store",
        regions_of=as_networks,
        signal_roi="LO",
        modes=("lesioned",),
        seeds=(0, 1, 2),
    )
    assert set(found.table()["region"]) == set(groups)
    assert found.named("lesioned") == ("Ventral",)


def test_an_atlas_that_shares_no_vertex_is_refused(atlas, tmp_path):
    elsewhere = Cortex(np.arange(20_000, 20_010), np.arange(20_000, 20_010))
    path = tmp_path / "elsewhere.dlabel.nii"
    write_dlabel(path, {"Visual": np.ones(20, bool)}, cortex_axis(elsewhere))
    with pytest.raises(DataError, match="no vertex in common with elsewhere"):
        network_atlas(atlas, path)
    with pytest.raises(DataError, match="the mesh 'fsaverage5'"):
        network_atlas(replace(atlas, mesh="fsaverage5"))
    with pytest.raises(DataError, match="vertices on no mesh"):
        network_atlas(replace(atlas, surface_index=None))
