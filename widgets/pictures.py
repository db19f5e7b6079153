"""Pictures on a page, each under a caption: plain images, which change without a figure being laid out anew."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from functools import lru_cache

import ipywidgets as w
import numpy as np

_SHARP = 224
_LEFT = {"align_items": "flex-start"}  # else a small picture is stretched


class Pictures(w.HBox):
    """A row of pictures under captions; gives its place up while nothing is shown.

    Parameters
    ----------
    widths : sequence of int
        The largest width of each picture, in pixels; all become narrower where the page is.
    """

    def __init__(self, widths: Sequence[int]):
        self._widths = tuple(widths)
        self._captions = [w.HTML() for _ in widths]
        # without a tooltip: ipywidgets 8.1 cannot draw an image that has one
        self._images = [
            w.Image(format="png", value=png(None), layout={"max_width": "100%"}) for _ in widths
        ]
        pairs = zip(self._captions, self._images, widths)
        items = [
            w.VBox(list(pair), layout={"flex": f"0 1 {width}px", "min_width": "0", **_LEFT})
            for *pair, width in pairs
        ]
        for item in items:
            item.add_class("bmfl-picture")
        super().__init__(items, layout={"align_items": "flex-end"})

    def show(self, *shown: tuple[np.ndarray | None, str]) -> None:
        """Show pictures, uint8 (H, W, 3 or 4), with captions; of None the caption only, of further places nothing."""
        self.layout.display = (
            None if any(image is not None or caption for image, caption in shown) else "none"
        )
        for place, item in enumerate(self.children):
            given = place < len(shown)
            item.layout.display = None if given else "none"
            image, caption = shown[place] if given else (None, "")
            self._captions[place].value = f"<div class='bmfl-caption'>{html.escape(caption)}</div>"
            # without a picture the last one keeps its place, unseen, so that nothing beside it
            # moves
            self._images[place].layout.visibility = "hidden" if image is None else None
            if image is not None:
                self._images[place].value = png(image)

    def to_html(self) -> str:
        """Return what is shown as a part of a page that needs no file."""
        parts = []
        for item, caption, image, width in zip(
            self.children, self._captions, self._images, self._widths
        ):
            if item.layout.display != "none" and image.layout.visibility != "hidden":
                address = "data:image/png;base64," + base64.b64encode(image.value).decode()
                shown = f"{caption.value}<img style='max-width:100%' src='{address}' alt=''>"
                parts.append(
                    f"<figure style='margin:0 12px 0 0;min-width:0;flex:0 1 {width}px'>{shown}</figure>"
                )
        look = "display:flex;align-items:flex-end;white-space:pre-line;font:13px Helvetica,Arial,sans-serif;padding:8px 28px"
        return f"<div style='{look}'>{''.join(parts)}</div>" if parts else ""


def png(image: np.ndarray | None) -> bytes:
    """Return an image as a PNG file; small photographs, uint8 (H, W, 3), are enlarged, None gives a clear pixel."""
    pixels = np.zeros((1, 1, 4), np.uint8) if image is None else np.ascontiguousarray(image)
    # what is partly clear was made here, in the size it is to have
    scale = max(1, round(_SHARP / max(pixels.shape[:2]))) if pixels.shape[2] == 3 else 1
    return _png(pixels.tobytes(), pixels.shape, scale)


# a change often leaves a picture as it was
@lru_cache(maxsize=32)
def _png(pixels: bytes, shape: tuple[int, ...], scale: int) -> bytes:
    from PIL import Image

    buffer, given = io.BytesIO(), Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(shape))
    larger = given.resize((given.width * scale, given.height * scale), Image.Resampling.NEAREST)
    larger.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def sheet(
    images: Sequence[np.ndarray], columns: int, side: int = 72, gap: int = 6
) -> np.ndarray | None:
    """Return square thumbnails in rows, clear between them, uint8 (H, W, 4); None of no images."""
    from PIL import Image

    if not images:
        return None
    columns, step = min(columns, len(images)), side + gap
    rows = -(-len(images) // columns)
    made = np.zeros((rows * step - gap, columns * step - gap, 4), dtype=np.uint8)
    for i, image in enumerate(images):
        small = Image.fromarray(np.ascontiguousarray(image)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        y, x = step * (i // columns), step * (i % columns)
        made[y : y + side, x : x + side] = np.asarray(small.convert("RGBA"))
    return made
