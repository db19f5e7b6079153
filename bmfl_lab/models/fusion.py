"""Two-way cross-attention between visual and brain tokens, and the two baselines of the same form.

Shape suffixes: B batch, P patches, D visual width, R brain tokens, E brain width, W common width, V
vertices, H heads, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bmfl_lab.errors import ConfigError, message
from bmfl_lab.models.attention import MultiHeadAttention

HEADS = ("fusion", "concat", "backbone")
QUERIES = ("cls", "patch")


class FusionOutput(NamedTuple):
    """Output of a fusion model.

    Parameters
    ----------
    logits : Tensor, shape (B, C)
        Class scores.
    x_vb, x_bv : Tensor, shape (B, W), or None
        Visual query over brain tokens, and brain query over visual patches; None for "backbone".
    attention : dict of str to Tensor, or None
        ``"vb"`` (B, H, 1 or 1+P, R) and ``"bv"`` (B, H, 1 or 1+R, P), on request.
    """

    logits: Tensor
    x_vb: Tensor | None
    x_bv: Tensor | None
    attention: dict[str, Tensor] | None = None


class Seen(NamedTuple):
    """The image's side of the cross-attentions, the same whatever the brain responds.

    Parameters
    ----------
    tokens : Tensor, shape (B, 1 or 1+P, W)
        Projected visual tokens that ask.
    normed : Tensor, shape (B, 1 or 1+P, W)
        The same after the norm.
    memory : tuple of Tensor, shape (B, H, P, W / H)
        Keys and values of the patches.
    """

    tokens: Tensor
    normed: Tensor
    memory: tuple[Tensor, Tensor]

    def of(self, rows: slice) -> Seen:
        """Return the same for some of the images."""
        return Seen(self.tokens[rows], self.normed[rows], tuple(part[rows] for part in self.memory))


class CrossAttentionFusion(nn.Module):
    """Two cross-attentions: visual queries over brain tokens and brain queries over visual patches.

    With a common width W, LayerNorm N and the projected tokens v (visual) and b (brain)::

        X_vb = v_q + MHA(query = N(v_q), keys and values = N(b_tokens))
        X_bv = b_q + MHA(query = N(b_q), keys and values = N(v_patches))

    where q is the CLS token alone (``query="cls"``), or CLS and all tokens followed by their mean
    (``query="patch"``). The residual is not normalised, there is no MLP inside, and values and
    outputs have no bias.

    Parameters
    ----------
    visual_width, brain_width, width : int
        D, E and W.
    n_heads : int, default 4
        Heads of both attentions.
    query : "cls" or "patch", default "cls"
        Who asks.

    Raises
    ------
    ConfigError
        If `query` is unknown or `n_heads` does not divide `width`.

    Notes
    -----
    NeuralOOD's text supports both readings of `query`. The order of the names vb and bv is not
    stated: here the first letter asks.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024). Chen et al., CrossViT, ICCV 2021: CLS query
    with a residual.
    """

    def __init__(
        self,
        *,
        visual_width: int,
        brain_width: int,
        width: int,
        n_heads: int = 4,
        query: str = "cls",
    ):
        super().__init__()
        if query not in QUERIES:
            raise ConfigError(message(f"query among {QUERIES}", repr(query), "choose one of them"))
        self.query = query
        self.project_visual = nn.Linear(visual_width, width)
        self.project_brain = nn.Linear(brain_width, width)
        self.norm_visual, self.norm_brain = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_vb = MultiHeadAttention(width=width, n_heads=n_heads, value_bias=False)
        self.attention_bv = MultiHeadAttention(width=width, n_heads=n_heads, value_bias=False)

    def see(self, cls_BD: Tensor, patches_BPD: Tensor) -> Seen:
        """Return what `forward` makes of visual tokens alone; parameters as there."""
        visual = self.project_visual(torch.cat([cls_BD[:, None], patches_BPD], 1))
        normed, n = self.norm_visual(visual), 1 if self.query == "cls" else None
        return Seen(visual[:, :n], normed[:, :n], self.attention_bv.memory(normed[:, 1:]))

    def forward(
        self,
        cls_BD: Tensor,
        patches_BPD: Tensor,
        brain_cls_BE: Tensor,
        brain_BRE: Tensor,
        *,
        weights: bool = False,
        seen: Seen | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor] | None]:
        """Fuse.

        Parameters
        ----------
        cls_BD, patches_BPD : Tensor, shapes (B, D) and (B, P, D)
            Visual tokens.
        brain_cls_BE, brain_BRE : Tensor, shapes (B, E) and (B, R, E)
            Brain tokens.
        weights : bool, default False
            Return attention weights.
        seen : Seen, optional
            Of these visual tokens, if `see` was called before.

        Returns
        -------
        x_vb, x_bv : Tensor, shape (B, W)
        attention : dict of str to Tensor, or None
            As in `FusionOutput`.

        Raises
        ------
        RuntimeError
            If widths do not agree.
        """
        seen = self.see(cls_BD, patches_BPD) if seen is None else seen
        brain = self.project_brain(torch.cat([brain_cls_BE[:, None], brain_BRE], 1))
        normed, n = self.norm_brain(brain), 1 if self.query == "cls" else None
        mixed_vb, weights_vb = self.attention_vb(seen.normed, normed[:, 1:], weights=weights)
        mixed_bv, weights_bv = self.attention_bv(normed[:, :n], memory=seen.memory, weights=weights)
        x_vb, x_bv = (seen.tokens + mixed_vb).mean(1), (brain[:, :n] + mixed_bv).mean(1)
        return x_vb, x_bv, {"vb": weights_vb, "bv": weights_bv} if weights else None


class FusionModel(nn.Module):
    """From visual tokens and a predicted response to class scores.

    Parameters
    ----------
    head : "fusion", "concat" or "backbone"
        "fusion": `CrossAttentionFusion`, then an MLP on [X_vb; X_bv]. "concat": the same brain
        transformer, no cross-attention; the MLP sees [projected visual summary; projected brain
        CLS]. "backbone": an MLP on the visual summary, no brain. The visual summary is [CLS; mean
        of the patches].
    visual_width, n_classes : int
        D and C.
    brain : nn.Module, optional
        `BrainTransformer`; not for "backbone".
    brain_width, width, n_heads, query
        As in `CrossAttentionFusion`.
    hidden : int, optional
        Hidden width of the MLP; `width` when not given.
    dropout : float, default 0
        Before the last layer, while training.

    Raises
    ------
    ConfigError
        If `head` is unknown or its brain transformer is missing.
    """

    def __init__(
        self,
        *,
        head: str,
        visual_width: int,
        n_classes: int,
        brain: nn.Module | None = None,
        brain_width: int = 64,
        width: int = 64,
        n_heads: int = 4,
        query: str = "cls",
        hidden: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.visual_width, self.n_classes = visual_width, n_classes
        # rows: CLS, patches; part of the state, so that a saved model standardises as the trained
        # one did
        self.register_buffer("token_mean", torch.zeros(2, visual_width))
        self.register_buffer("token_scale", torch.ones(2, visual_width))
        if head not in HEADS or (head != "backbone" and brain is None):
            got = f"{head!r}" + ("" if brain is not None else " without a brain transformer")
            raise ConfigError(
                message(
                    f"head among {HEADS}, with a brain transformer unless 'backbone'",
                    got,
                    "correct it",
                )
            )
        self.head = head
        self.brain = None if head == "backbone" else brain
        if head == "fusion":
            self.fusion = CrossAttentionFusion(
                visual_width=visual_width,
                brain_width=brain_width,
                width=width,
                n_heads=n_heads,
                query=query,
            )
        elif head == "concat":
            self.project_visual = nn.Linear(2 * visual_width, width)
            self.project_brain = nn.Linear(brain_width, width)
        n_in, hidden = 2 * (visual_width if head == "backbone" else width), hidden or width
        self.classifier = nn.Sequential(
            nn.LayerNorm(n_in),
            nn.Linear(n_in, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, n_classes),
        )

    def standardise_tokens(self, cls_BD: Tensor, patches_BPD: Tensor) -> None:
        """Take the mean and standard deviation of each token dimension from training tokens.

        Parameters
        ----------
        cls_BD, patches_BPD : Tensor, shapes (B, D) and (B, P, D)
            CLS and patch tokens, each standardised by their own.
        """
        for row, tokens in enumerate((cls_BD, patches_BPD)):
            centre = tokens[:1].flatten(0, -2).double().mean(0)
            total, square, count = torch.zeros_like(centre), torch.zeros_like(centre), 0
            for part in tokens.split(
                512
            ):  # in parts, because the tokens may fill the memory at half precision
                flat = part.flatten(0, -2).double() - centre
                total, square, count = (
                    total + flat.sum(0),
                    square + flat.square().sum(0),
                    count + len(flat),
                )
            mean = total / count
            self.token_mean[row] = mean + centre
            self.token_scale[row] = (square / count - mean**2).clamp_min(0).sqrt().clamp_min(1e-4)

    def see(self, cls_BD: Tensor, patches_BPD: Tensor) -> Seen | None:
        """Return the image's side of a "fusion" for several responses to the same images, None for other heads."""
        if self.head != "fusion":
            return None
        return self.fusion.see(*self._standardised(cls_BD, patches_BPD))

    def _standardised(self, cls_BD: Tensor, patches_BPD: Tensor) -> tuple[Tensor, Tensor]:
        return (
            (cls_BD - self.token_mean[0]) / self.token_scale[0],
            (patches_BPD - self.token_mean[1]) / self.token_scale[1],
        )

    def forward(
        self,
        cls_BD: Tensor,
        patches_BPD: Tensor,
        response_BV: Tensor | None = None,
        *,
        weights: bool = False,
        seen: Seen | None = None,
    ) -> FusionOutput:
        """Classify.

        Parameters
        ----------
        cls_BD, patches_BPD : Tensor, shapes (B, D) and (B, P, D)
            Visual tokens.
        response_BV : Tensor, shape (B, V), optional
            Predicted response of the vertices that the brain transformer reads; unused by
            "backbone".
        weights : bool, default False
            Return attention weights ("fusion" only).
        seen : Seen, optional
            Of these visual tokens, if `see` was called before.

        Returns
        -------
        FusionOutput

        Raises
        ------
        RuntimeError
            If widths do not agree.
        """
        if seen is None:
            cls_BD, patches_BPD = self._standardised(cls_BD, patches_BPD)
        if self.head == "backbone":
            return FusionOutput(
                self.classifier(torch.cat([cls_BD, patches_BPD.mean(1)], 1)), None, None
            )
        brain_cls_BE, brain_BRE = self.brain(response_BV)
        attention = None
        if self.head == "fusion":
            x_vb, x_bv, attention = self.fusion(
                cls_BD, patches_BPD, brain_cls_BE, brain_BRE, weights=weights, seen=seen
            )
        else:
            x_vb = self.project_visual(torch.cat([cls_BD, patches_BPD.mean(1)], 1))
            x_bv = self.project_brain(brain_cls_BE)
        return FusionOutput(self.classifier(torch.cat([x_vb, x_bv], 1)), x_vb, x_bv, attention)


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def matched_hidden(n_parameters: int, *, visual_width: int, n_classes: int) -> int:
    """Return the hidden width with which a "backbone" model has as many parameters as another model.

    Parameters
    ----------
    n_parameters : int
        Trainable parameters to match.
    visual_width, n_classes : int
        D and C of the backbone model.

    Returns
    -------
    int

    Raises
    ------
    ConfigError
        If no hidden width comes within 2 %.
    """
    n_in = 2 * visual_width
    fixed, per_unit = 2 * n_in + n_classes, n_in + 1 + n_classes
    hidden = max(1, round((n_parameters - fixed) / per_unit))
    if abs(fixed + hidden * per_unit - n_parameters) > 0.02 * n_parameters:
        raise ConfigError(
            message(
                f"a backbone head within 2 % of {n_parameters} parameters",
                f"{fixed + hidden * per_unit} with {hidden} hidden units",
                "choose a wider fusion",
            )
        )
    return hidden
