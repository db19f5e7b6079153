"""Turn any function from images to logits into a model that the evaluation accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, require, translated


@dataclass(frozen=True)
class CallableModel:
    """A model whose logits are computed by a function; made by `as_model`.

    Parameters
    ----------
    name : str
        Name in tables.
    function : callable
        ``function(list of uint8 (H, W, 3) images) -> (n_images, n_classes)``.
    columns : ndarray of int, optional
        Columns of the function's output to keep, in the order of `class_names` or of the study's
        classes; default: all.
    batch_size : int, default 64
        Number of images per call.
    class_names : tuple of str, optional
        Class of each column that is kept. Sets with some of these classes, in any order, are then
        scored by name.
    """

    name: str
    function: Callable
    columns: np.ndarray | None = None
    batch_size: int = 64
    class_names: tuple[str, ...] | None = None

    def logits(self, stimuli: StimulusSet) -> np.ndarray:
        """Return class scores.

        Parameters
        ----------
        stimuli : StimulusSet
            Images.

        Returns
        -------
        ndarray of float32, shape (n_stimuli, n_classes)
            In the order of `class_names`, or of the set's classes if there are none.

        Raises
        ------
        DataError
            If the function returns another shape, another number of columns than there are classes,
            or other scores for an image if it stands alone: scores that depend on the other images
            (standardised over them, for instance) see the test set.
        """
        blocks = []
        for start in range(0, len(stimuli), self.batch_size):
            images = [
                stimuli.image(i) for i in range(start, min(start + self.batch_size, len(stimuli)))
            ]
            found = self._scores(images)
            require(
                found.ndim == 2 and len(found) == len(images),
                DataError,
                f"logits of shape ({len(images)}, n_classes)",
                found.shape,
                "let the function return one row per image",
            )
            if start == 0 and len(images) > 1:
                finite = found[np.isfinite(found)]
                self._require_alone(found[0], finite.std() if finite.size else 0.0, images[:1])
            columns = slice(None) if self.columns is None else np.asarray(self.columns)
            blocks.append(found[:, columns].astype(np.float32))
        n_classes = len(stimuli.class_names if self.class_names is None else self.class_names)
        logits = np.concatenate(blocks) if blocks else np.zeros((0, n_classes), np.float32)
        of = f"class of {stimuli.name!r}" if self.class_names is None else "name in class_names"
        require(
            not n_classes or logits.shape[1] == n_classes,
            DataError,
            f"{n_classes} logits, one per {of}",
            f"{logits.shape[1]} from {self.name!r}",
            "pass class_names=... to name the columns, or columns=... to choose them",
        )
        return logits

    def _scores(self, images: list[np.ndarray]) -> np.ndarray:
        found = self.function(images)
        return found.detach().cpu().numpy() if hasattr(found, "detach") else np.asarray(found)

    def _require_alone(self, row: np.ndarray, scale: float, image: list[np.ndarray]) -> None:
        """Refuse a function whose scores of an image change with the images beside it."""
        expected = f"scores of {self.name!r} that depend on each image alone"
        remedy = "fit means and scales on training images, and put networks into evaluation mode"
        # batch normalisation in training mode refuses a single image
        with translated(ValueError, RuntimeError, expected=expected, remedy=remedy):
            alone = np.asarray(self._scores(image), dtype=np.float64)[0]
        unequal = ~np.isclose(alone, row, rtol=0.05, atol=0.05 * scale, equal_nan=True)
        require(
            not unequal.any(),
            DataError,
            expected,
            f"{row[unequal][:2]} among others and {alone[unequal][:2]} alone",
            remedy,
        )


def as_model(
    function: Callable,
    name: str,
    *,
    columns: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 64,
) -> CallableModel:
    """Return a model for the evaluation from any function from images to logits.

    Parameters
    ----------
    function : callable
        Takes a list of uint8 RGB images (H, W, 3) and returns an array or tensor (n_images,
        n_classes). It resizes and normalises the images itself.
    name : str
        Name in tables.
    columns : ndarray of int, optional
        Columns to keep, for a classifier with more classes than the study; default: all.
    class_names : sequence of str, optional
        Class of each column that is kept, e.g. the 1,000 sorted wnids of ImageNet. The evaluation
        then selects by name the columns of a set with fewer classes, such as ImageNet-R. Without
        names the columns must be the classes of each set.
    batch_size : int, default 64
        Number of images per call.

    Returns
    -------
    CallableModel

    Examples
    --------
    >>> model = as_model(lambda images: [[im.mean(), 0.0] for im in images], "brightness")
    >>> result = evaluate_ood({model.name: model}, study)  # doctest: +SKIP
    """
    names = None if class_names is None else tuple(class_names)
    return CallableModel(name, function, columns, batch_size, names)
