"""The static brain maps."""

import numpy as np
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError
from bmfl_lab.viz.surface import (
    _apart,
    load_mesh,
    roi_map,
    surface_maps,
    surface_panel,
    view_of,
)


def make():
    back = [load_mesh(side)[0][:, 1] for side in ("left", "right")]
    index = [np.flatnonzero(y < -20) for y in back]
    y = np.concatenate([b[i] for b, i in zip(back, index)])
    atlas = Atlas(
        np.repeat([0, 1], [len(i) for i in index]),
        {"V1": y < -80, "V2": (y >= -80) & (y < -60), "far": y > 1e3},
        surface_index=np.concatenate(index),
        mesh="fsaverage5",
    )
    return y, atlas


def picture(axis):
    return axis.images[0].get_array()


def test_panel_has_both_hemispheres_and_one_bar():
    y, atlas = make()
    figure = surface_panel(
        y + 60, atlas, title="Made map", unit="mm", outline=["V1"], views=("lateral", "ventral")
    )
    assert len(figure.axes) == 5 and figure.axes[-1].get_ylabel() == "mm"
    low, high = figure.axes[-1].get_ylim()
    assert low == pytest.approx(-high)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["V1"]
    bare = surface_panel(
        np.full(len(y), np.nan), atlas, title="None", unit="r", signed=False, views=("medial",)
    )
    assert np.ptp(picture(bare.axes[0])[..., :3], axis=-1).max() < 1e-9  # no data: grey only


def test_a_map_of_coordinates_is_drawn_where_its_coordinates_are():
    for side in ("left", "right"):
        coordinates, _ = load_mesh(side)
        for name, (axis, sign) in {
            "posterior": (0, 1),
            "lateral": (1, 1 if side == "right" else -1),
        }.items():
            seen = view_of(side, name)
            found = seen.interpolate(coordinates[:, axis].astype(float))
            left, right, *_ = seen.extent
            columns = left + (np.arange(found.shape[1]) + 0.5) / found.shape[1] * (right - left)
            error = (sign * found - columns)[seen.inside]
            assert (
                np.nanquantile(np.abs(error), 0.99) < 0.5
            )  # mm; a pixel may lie at the edge of its triangle
        hidden = load_mesh(side)[0][:, 1] > 0  # the front is never seen from behind
        assert (
            not view_of(side, "posterior")
            .nearest(hidden.astype(int))[view_of(side, "posterior").inside]
            .mean()
            > 0.1
        )


def test_regions_are_named_and_the_smallest_wins():
    _, atlas = make()
    figure = roi_map(atlas, views=("posterior",))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "V1",
        "V2",
    ]  # "far" has no vertex
    assert sorted(t.get_text() for a in figure.axes for t in a.texts) == [
        "V1",
        "V1",
        "V2",
        "V2",
        "left",
        "right",
    ]
    inner = Atlas(
        atlas.hemisphere,
        {"all": np.ones(atlas.n_vertices, bool), **atlas.rois},
        atlas.surface_index,
        "fsaverage5",
    )
    colours = picture(roi_map(inner, views=("posterior",)).axes[0])
    assert (
        len(np.unique((colours[..., 0] / colours[..., 2].clip(1e-3)).round(2))) > 3
    )  # grey and three colours


def test_several_maps_share_one_scale_and_zoom_shows_less():
    y, atlas = make()
    maps = {"small": np.abs(y) / 100, "large": np.abs(y)}
    whole = surface_maps(maps, atlas, title="t", unit="mm", views=("posterior",))
    near = surface_maps(maps, atlas, title="t", unit="mm", views=("posterior",), zoom=True)
    assert len(whole.axes) == 5 and len({id(a) for a in whole.axes}) == 5
    assert np.ptp(near.axes[0].get_ylim()) <= np.ptp(whole.axes[0].get_ylim())
    assert whole.axes[-1].get_ylim()[1] == pytest.approx(
        np.percentile(np.concatenate(list(maps.values())), 99)
    )


def test_labels_of_one_view_do_not_lie_over_each_other():
    class Axis:
        def get_ylim(self):
            return 0.0, 136.8  # a point a millimetre

    one, other = Axis(), Axis()
    given = [
        (one, "V1", (0.0, 50.0)),
        (one, "V2", (5.0, 52.0)),
        (one, "LO", (60.0, 50.0)),
        (other, "V3", (0.0, 50.0)),
    ]
    found = {name: place for _, name, place in _apart(given)}
    assert (
        abs(found["V1"][1] - found["V2"][1]) >= 9
        and found["LO"] == (60.0, 50.0)
        and found["V3"] == (0.0, 50.0)
    )
    assert all(found[n][0] == x for _, n, (x, _) in given)


def test_whole_numbers_keep_their_own_colours():
    y, atlas = make()
    block = np.where(y < -70, 3.0, 11.0)
    block[:5] = np.nan
    figure = surface_panel(block, atlas, title="t", unit="block", views=("posterior",), whole=True)
    assert figure.axes[-1].get_yticks().tolist() == list(range(3, 12))
    shown = picture(figure.axes[0])
    hue = (shown[..., 0] / shown[..., 2].clip(1e-3)).round(2)[shown[..., 3] > 0]  # free of shading
    assert len(np.unique(hue)) == 3  # grey and two colours; mixing would give all in between


def test_bad_names_are_refused():
    y, atlas = make()
    with pytest.raises(ConfigError, match="did you mean 'lateral'"):
        surface_panel(y, atlas, title="t", unit="u", views=("latral",))
    with pytest.raises(ConfigError, match="a surface among"):
        surface_panel(y, atlas, title="t", unit="u", surface="puffy")


def test_outlines_are_named_once_per_hemisphere_where_they_are_seen_best():
    y, atlas = make()
    figure = surface_panel(y, atlas, title="t", unit="mm", outline=["V1", "V2"])
    written = [(t.get_text(), axis) for axis in figure.axes[:8] for t in axis.texts]
    names = sorted(name for name, _ in written if name in ("V1", "V2"))
    assert names == ["V1", "V1", "V2", "V2"]
    # V1 is the back of the brain
    assert all(axis in figure.axes[3:8:4] for name, axis in written if name == "V1")


def test_the_flat_map_shows_both_hemispheres_and_the_vertices_at_their_place():
    y, atlas = make()
    figure = surface_panel(y, atlas, title="t", unit="mm", outline=["V1"], surface="flat")
    left, right = figure.axes[:2]
    assert [a.get_title() for a in (left, right)] == ["left", "right"]
    for axis, side in ((left, "left"), (right, "right")):
        (place,) = [t.get_position() for t in axis.texts if t.get_text() == "V1"]
        raster = view_of(side, "flat", "flat")
        index = atlas.surface_index[(atlas.hemisphere == (side == "right")) & atlas.rois["V1"]]
        assert np.linalg.norm(raster.position[index] - place, axis=1).min() < 3
        assert 0.4 < raster.inside.mean() < 0.9  # the flat map fills its frame
