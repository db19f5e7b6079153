"""Stimuli, responses, atlases, studies, and the readers of data sets.

Importing this package imports every file in it, and with it every call of `register_reader`: a new
reader is one new file.
"""

import importlib
import pkgutil

from bmfl_lab.data import demo, planted
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study, load_study, register_reader

for _file in pkgutil.iter_modules(__path__):
    if not _file.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_file.name}")

register_reader("planted", planted.load)
register_reader("demo", demo.load)

__all__ = [
    "Atlas",
    "StimulusSet",
    "Study",
    "Subject",
    "algonauts",
    "demo",
    "folder",
    "imagenet",
    "imported",
    "kamitani",
    "load_study",
    "nod",
    "nod_planted",
    "nsd",
    "planted",
    "register_reader",
]
