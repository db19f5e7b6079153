"""Each format of files is opened in one place, which checks what a file promises; this is checked here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES, CONTAINERS = "bmfl_lab/files.py", "bmfl_lab/data/containers.py"
WEIGHTS, FETCH = "bmfl_lab/backbones/weights.py", "bmfl_lab/data/fetch.py"
OPENERS = {
    "json.load": (),
    "json.loads": (FILES,),
    "yaml.load": (),
    "yaml.safe_load": (FILES,),
    "csv.reader": (),
    "csv.DictReader": (FILES,),
    "pandas.read_csv": (),
    "pandas.read_table": (),
    "pandas.read_pickle": (),
    "pandas.read_excel": (),
    "pandas.read_parquet": (),
    "pandas.read_hdf": (),
    "numpy.load": (FILES,),
    "numpy.loadtxt": (),
    "numpy.genfromtxt": (),
    "numpy.fromfile": (),
    "numpy.lib.npyio.NpzFile": (CONTAINERS,),
    "h5py.File": (CONTAINERS,),
    "scipy.io.loadmat": (CONTAINERS,),
    "nibabel.load": (CONTAINERS,),
    "nibabel.MGHImage": (CONTAINERS,),
    "nibabel.Nifti1Image": (),
    "nibabel.Nifti2Image": (CONTAINERS,),
    "nibabel.gifti.GiftiImage": (CONTAINERS,),
    "nibabel.freesurfer": (),
    "xml.etree.ElementTree.fromstring": (CONTAINERS,),
    "xml.etree.ElementTree.iterparse": (CONTAINERS,),
    "xml.etree.ElementTree.parse": (),
    "zipfile.ZipFile": (FETCH, CONTAINERS, WEIGHTS),  # an .npz and torch's format are zip files
    "tarfile.open": (FETCH, "bmfl_lab/data/shards.py"),  # the second one writes
    "PIL.Image.open": ("bmfl_lab/data/images.py",),
    "torch.load": (WEIGHTS,),
    "safetensors.safe_open": (),
    "safetensors.torch.load": (WEIGHTS,),
    "safetensors.torch.load_file": (WEIGHTS,),
    "pickle.load": (),
    "pickle.loads": (),
    "nbformat.read": (),
    "nbformat.reads": ("bmfl_lab/runs/export.py",),  # of what was opened and checked before
}
"""Functions that open a format, and the files that may name them."""


def names_of(tree):
    """Return the dotted name of each thing of a library that the code names, and its line."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for part in node.names:
                top = part.name.split(".")[0]
                known[part.asname or top] = part.name if part.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            for part in node.names:
                known[part.asname or part.name] = f"{node.module}.{part.name}"
    for node in ast.walk(tree):
        tail, inner = [], node
        while isinstance(inner, ast.Attribute):
            tail.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id in known:
            yield ".".join([known[inner.id], *tail]), node.lineno


def outside(source, path):
    """Return the openers that a file names and that belong to other files."""
    found = set()
    for name, line in names_of(ast.parse(source)):
        if name in OPENERS and path not in OPENERS[name]:
            found.add(f"{path}:{line}: {name}")
    return sorted(found)


def test_each_format_is_opened_in_its_own_place():
    sources = sorted(p for top in ("bmfl_lab", "widgets") for p in (ROOT / top).rglob("*.py"))
    assert len(sources) > 100
    found = [
        hit
        for path in sources
        for hit in outside(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert found == []


def test_every_place_of_the_table_opens_what_it_is_listed_for():
    for name, paths in OPENERS.items():
        for path in paths:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert name in {found for found, _ in names_of(tree)}, (name, path)


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.loads(text)",
        "from json import loads\nvalue = loads(text)",
        "import json as j\nread = j.load",
        "def f():\n    import nibabel as nib\n    return nib.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import scipy.io\nscipy.io.loadmat(path)",
        "from scipy.io import loadmat\nloadmat(path)",
        "import h5py\nwith h5py.File(path) as f:\n    pass",
        "import pandas as pd\npd.read_csv(path)",
        "from yaml import safe_load as read\nread(text)",
    ],
)
def test_the_rule_sees_each_way_to_name_an_opener(source):
    assert outside(source, "bmfl_lab/new.py")


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.dumps(value)",
        "import numpy as np\nnp.save(path, values)",
        "from bmfl_lab.files import parse_json\nparse_json(text)",
        "model.load(path)",
    ],
)
def test_the_rule_lets_others_pass(source):
    assert outside(source, "bmfl_lab/new.py") == []
