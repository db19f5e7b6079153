"""Region groups print their own definition."""

import numpy as np

from bmfl_lab.data.atlas import Atlas, describe_groups


def test_groups_name_their_members_and_count_each_vertex_once():
    rois = {
        "V1v": [1, 1, 0, 0],
        "V1d": [0, 0, 1, 0],
        "EBA": [0, 0, 1, 1],
        "FFA-1": [0, 0, 0, 1],
        "PPA": [0, 0, 0, 0],
    }
    atlas = Atlas(np.array([0, 0, 1, 1]), {k: np.array(v, bool) for k, v in rois.items()})
    lines = dict(line.split(" = ", 1) for line in describe_groups(atlas).splitlines())
    assert lines["LVC"] == "V1v + V1d: 2 left and 1 right vertices"
    assert lines["HVC"] == "EBA + FFA-1: 0 left and 2 right vertices; absent: PPA"
    assert lines["HVC-streams"] == "nothing: 0 left and 0 right vertices"
    assert set(atlas.select("HVC").nonzero()[0]) == {2, 3}
