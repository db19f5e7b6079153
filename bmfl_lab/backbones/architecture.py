"""Sizes of a backbone, and the convention for its positions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Sizes of a backbone.

    Parameters
    ----------
    name : str
        Public name.
    width, n_heads, n_blocks, n_registers : int
        Token width, attention heads, transformer blocks, register tokens.
    ffn : {"mlp", "swiglu"}
        Feed-forward form; the giant model uses SwiGLU.
    grid : int
        Rows (and columns) of patches the positional embedding was trained for.
    patch_size : int
        Side of a patch in pixels.
    """

    name: str
    width: int
    n_heads: int
    n_blocks: int
    n_registers: int = 0
    ffn: str = "mlp"
    grid: int = 37
    patch_size: int = 14

    @property
    def ffn_width(self) -> int:
        """Hidden width of the feed-forward layer: 4 D, or two thirds of it rounded up to 8 for SwiGLU."""
        hidden = 4 * self.width
        return hidden if self.ffn == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8


@dataclass(frozen=True)
class Interpolation:
    """How the positional embedding is resampled to another grid.

    Parameters
    ----------
    offset : float
        Added to the number of patches before the scale factor is formed; 0 gives the output size
        itself.
    antialias : bool
        Low-pass filter when the grid shrinks.

    Notes
    -----
    Three conventions exist and give different tokens away from the native grid. The original hub
    models without registers use offset 0.1 and no antialiasing, those with registers offset 0 and
    antialiasing; the Hugging Face ports use offset 0 for both, antialiased for the register models
    only.
    """

    offset: float = 0.0
    antialias: bool = False
