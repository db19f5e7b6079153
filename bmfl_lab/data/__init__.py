"""Stimuli, responses, atlases, studies, and the readers of data sets.

Importing this package imports every module below that calls `register_reader`; a new reader in this
package is added to the list of imports.
"""

from bmfl_lab.data import (
    algonauts,
    demo,
    folder,
    imagenet,
    imported,
    kamitani,
    nod,
    nod_planted,
    nsd,
    planted,
)
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study, load_study, register_reader

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
