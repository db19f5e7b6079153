"""Remove secrets and home paths from the files that a run leaves behind."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import TypeVar

from bmfl_lab.runtime import project_root

T = TypeVar("T")
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE
)
_SECRET_SHAPE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,})\b"
)
_BINARY = ("image/png", "image/jpeg", "application/pdf")


@functools.cache
def _replacements() -> list[tuple[re.Pattern[str], str]]:
    secrets = [
        (re.compile(re.escape(value)), "***")
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= 8 and not Path(value).exists()
    ]
    folders = [
        (re.compile(r"(?<![\w.~-])" + re.escape(str(folder)) + r"(?![\w-])"), mark)
        for folder, mark in ((project_root(), "."), (Path.home(), "~"))
        if len(folder.parts) > 1
    ]
    return secrets + folders


def scrub_text(value: str) -> str:
    """Return `value` without secrets and tokens, with the home folder written as ``~``."""
    for pattern, mark in _replacements():
        value = pattern.sub(mark, value)
    return _SECRET_SHAPE.sub("***", value)


def scrub(value: T) -> T:
    """Return a JSON value with every text in it scrubbed, except encoded images."""
    if isinstance(value, str):
        return scrub_text(value)
    if isinstance(value, dict):
        return {k: v if k in _BINARY else scrub(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(v) for v in value]
    return value
