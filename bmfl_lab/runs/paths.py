"""Folders in which runs read and write."""

from __future__ import annotations

from pathlib import Path

from bmfl_lab.errors import RunError, message
from bmfl_lab.runtime import project_root


def out_root(out: str | Path | None = None, root: Path | None = None) -> Path:
    """Return the folder of all runs: `out`, or ``papermill_runs/out`` of the project at `root`."""
    if out:
        return Path(out).expanduser()
    return (root or project_root()) / "papermill_runs" / "out"


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

    Raises
    ------
    RunError
        If the folder cannot be made.
    """
    folder = Path(out) if str(out) else out_root() / "manual" / stem
    try:
        folder = folder.expanduser()
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:  # also of texts that can be no path
        raise RunError(
            message(
                f"a writable folder {folder}",
                str(error),
                "set the notebook's parameter 'out' to a folder of yours",
            )
        ) from error
    return folder
