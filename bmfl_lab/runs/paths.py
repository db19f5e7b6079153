"""Where runs read and write."""

from __future__ import annotations

from pathlib import Path


def project_root(start: str | Path | None = None) -> Path:
    """Return the nearest folder at or above `start` that holds a ``pyproject.toml``.

    Parameters
    ----------
    start : str or Path, optional
        Where to look first; the current folder by default.

    Returns
    -------
    Path
        The project's root, or `start` itself when no parent is a project.
    """
    start = Path(start) if start is not None else Path.cwd()
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file():
            return folder
    return start


def run_folder(out: str | Path = "", stem: str = "notebook") -> Path:
    """Return the folder that a notebook writes to, and make it.

    Parameters
    ----------
    out : str or Path
        The notebook's parameter of that name. The runner sets it; empty means a run by hand.
    stem : str
        Stem of the notebook ("03_fusion_training").

    Returns
    -------
    Path
        `out`, or ``papermill_runs/out/manual/<stem>`` under the project's root, whether the
        notebook was started from the root or from ``notebooks/``.
    """
    folder = (
        Path(out).expanduser()
        if str(out)
        else project_root() / "papermill_runs" / "out" / "manual" / stem
    )
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    return folder
