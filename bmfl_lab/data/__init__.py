"""Stimuli, responses, atlases and studies."""

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study, load_study

__all__ = ["Atlas", "StimulusSet", "Study", "Subject", "load_study"]
