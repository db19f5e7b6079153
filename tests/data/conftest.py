"""A folder of images in class folders, for tests of readers and of copies."""

import pytest
from pictures import write


@pytest.fixture
def root(tmp_path):
    """Write train, val, test and drawings with two classes each, no image twice."""
    value = 0
    for split, n in (("train", 6), ("val", 2), ("test", 2), ("drawings", 2)):
        for label in ("bird", "cat"):
            for i in range(n):
                write(tmp_path / "set" / split / label / f"img_{i}.png", value)
                value += 1
    return tmp_path / "set"
