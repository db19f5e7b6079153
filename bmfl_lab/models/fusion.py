"""Two-way cross-attention between visual and brain tokens, and two baselines built alike.

Shape suffixes: B batch, P patches, D visual width, R brain tokens, E brain width, W common width, V
vertices, H heads, C classes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from bmfl_lab.errors import ConfigError, message, require, require_known
from bmfl_lab.models.attention import MultiHeadAttention

Head = Literal["fusion", "concat", "backbone"]
HEADS: tuple[str, ...] = get_args(Head)
Query = Literal["cls", "patch"]
QUERIES: tuple[str, ...] = get_args(Query)
"""Which token is the query in the cross-attention: CLS alone, or CLS and all other tokens."""


class FusionOutput(NamedTuple):
    """Hold the output of a fusion model.

    Parameters
    ----------
    logits : Tensor, shape (B, C)
        Class scores.
    x_vb, x_bv : Tensor, shape (B, W), or None
        Features of the visual query over brain tokens, and of the brain query over visual patches;
        None for "backbone".
    attention : dict of str to Tensor, or None
        Attention weights ``"vb"`` (B, H, 1 or 1+P, R) and ``"bv"`` (B, H, 1 or 1+R, P), where they
        were requested.
    """

    logits: Tensor
    x_vb: Tensor | None
    x_bv: Tensor | None
    attention: dict[str, Tensor] | None = None


class ImageSide(NamedTuple):
    """Hold the part of the cross-attentions that depends on the image alone.

    It is the same for every response, so that many lesions of one image can share it.

    Parameters
    ----------
    tokens : Tensor, shape (B, 1 or 1+P, W)
        Projected visual tokens that are queries.
    normed : Tensor, shape (B, 1 or 1+P, W)
        Projected tokens after the LayerNorm.
    memory : tuple of two Tensors, shape (B, H, P, W / H)
        Keys and values of the patches.
    """

    tokens: Tensor
    normed: Tensor
    memory: tuple[Tensor, Tensor]

    def rows(self, rows: slice) -> ImageSide:
        """Return the same for some of the images."""
        key, value = self.memory
        return ImageSide(self.tokens[rows], self.normed[rows], (key[rows], value[rows]))


class Moments:
    """Accumulate the mean and standard deviation of each dimension over batches, in float64.

    Sums are taken of differences to the first image, so that a large mean costs no digits.
    """

    def __init__(self):
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Add values of shape (n, ..., D); all but the last dimension are averaged over."""
        if not self.count:
            self.centre = values[:1].flatten(0, -2).double().mean(0)
            self.total, self.square = torch.zeros_like(self.centre), torch.zeros_like(self.centre)
        flat = values.flatten(0, -2).double() - self.centre
        self.total = self.total + flat.sum(0)
        self.square = self.square + flat.square().sum(0)
        self.count += len(flat)

    def cpu(self) -> Moments:
        """Return the same sums in main memory, for another process."""
        found = Moments()
        found.__dict__ = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return found

    def join(self, other: Moments) -> None:
        """Add all values of another accumulator, whose sums may have another centre."""
        if not other.count:
            return
        if not self.count:
            self.centre = other.centre
            self.total, self.square = torch.zeros_like(self.centre), torch.zeros_like(self.centre)
        gap = other.centre - self.centre
        self.total = self.total + other.total + other.count * gap
        self.square = self.square + other.square + gap * (2 * other.total + other.count * gap)
        self.count += other.count

    def mean(self) -> Tensor:
        """Return the mean, float64 (D,)."""
        return self.total / self.count + self.centre

    def std(self) -> Tensor:
        """Return the standard deviation (of the population), float64 (D,)."""
        variance = self.square / self.count - (self.total / self.count) ** 2
        return variance.clamp_min(0).sqrt()


class CrossAttentionFusion(nn.Module):
    """Attend from visual queries to brain tokens, and from brain queries to visual patches.

    With a common width W, LayerNorm N and the projected tokens v (visual) and b (brain)::

        X_vb = v_q + MHA(query = N(v_q), keys and values = N(b_tokens))
        X_bv = b_q + MHA(query = N(b_q), keys and values = N(v_patches))

    where q is the CLS token alone (``query="cls"``), or CLS and all tokens followed by their mean
    (``query="patch"``). The residual is not normalised, there is no MLP inside, and values and
    outputs have no bias.

    Parameters
    ----------
    visual_width : int
        Width D of the visual tokens.
    brain_width : int
        Width E of the brain tokens.
    width : int
        Common width W to which both are projected.
    n_heads : int, default 4
        Number of heads of both attentions.
    query : "cls" or "patch", default "cls"
        Which token is the query in the cross-attention: CLS alone, or CLS and all other tokens.

    Raises
    ------
    ConfigError
        If `query` is unknown or `n_heads` does not divide `width`.

    Notes
    -----
    NeuralOOD's text supports both readings of `query`, and does not state the order of the names vb
    and bv. Here the first letter names the query: vb has visual queries over brain tokens.

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
        require_known(query, QUERIES, ConfigError, f"query among {QUERIES}")
        self.query = query
        self.project_visual = nn.Linear(visual_width, width)
        self.project_brain = nn.Linear(brain_width, width)
        self.norm_visual, self.norm_brain = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_vb = MultiHeadAttention(width=width, n_heads=n_heads, value_bias=False)
        self.attention_bv = MultiHeadAttention(width=width, n_heads=n_heads, value_bias=False)

    def image_side(self, cls_BD: Tensor, patches_BPD: Tensor) -> ImageSide:
        """Return what `forward` computes from the visual tokens, (B, D) and (B, P, D), alone."""
        # joined after the projection, which makes them smaller
        visual = torch.cat(
            [self.project_visual(cls_BD)[:, None], self.project_visual(patches_BPD)], 1
        )
        normed, n = self.norm_visual(visual), 1 if self.query == "cls" else None
        return ImageSide(visual[:, :n], normed[:, :n], self.attention_bv.memory(normed[:, 1:]))

    def forward(
        self,
        cls_BD: Tensor,
        patches_BPD: Tensor,
        brain_cls_BE: Tensor,
        brain_BRE: Tensor,
        *,
        weights: bool = False,
        image_side: ImageSide | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor] | None]:
        """Return the fused features and, on request, the attention weights.

        Parameters
        ----------
        cls_BD, patches_BPD : Tensor, shapes (B, D) and (B, P, D)
            Visual tokens.
        brain_cls_BE, brain_BRE : Tensor, shapes (B, E) and (B, R, E)
            Brain tokens.
        weights : bool, default False
            Return attention weights.
        image_side : ImageSide, optional
            Result of `image_side` for the same visual tokens, if it was called before.

        Returns
        -------
        x_vb, x_bv : Tensor, shape (B, W)
        attention : dict of str to Tensor, or None
            See `FusionOutput`.

        Raises
        ------
        RuntimeError
            If widths do not agree.
        """
        side = self.image_side(cls_BD, patches_BPD) if image_side is None else image_side
        brain = self.project_brain(torch.cat([brain_cls_BE[:, None], brain_BRE], 1))
        normed, n = self.norm_brain(brain), 1 if self.query == "cls" else None
        mixed_vb, weights_vb = self.attention_vb(side.normed, normed[:, 1:], weights=weights)
        mixed_bv, weights_bv = self.attention_bv(normed[:, :n], memory=side.memory, weights=weights)
        x_vb, x_bv = (side.tokens + mixed_vb).mean(1), (brain[:, :n] + mixed_bv).mean(1)
        return x_vb, x_bv, {"vb": weights_vb, "bv": weights_bv} if weights else None


class FusionModel(nn.Module):
    """Classify an image by its visual tokens and its predicted response.

    Parameters
    ----------
    head : "fusion", "concat" or "backbone"
        Input of the classifier, an MLP with one hidden layer. "fusion": the two outputs X_vb and
        X_bv of `CrossAttentionFusion`, joined. "concat": a linear projection of the visual summary,
        joined with a linear projection of the brain transformer's CLS token; there is no
        cross-attention. "backbone": the visual summary alone; there is no brain transformer. The
        visual summary is the CLS token joined with the mean patch token.
    visual_width : int
        Width D of the visual tokens.
    n_classes : int
        Number of classes C.
    brain : BrainTransformer, optional
        Makes the brain tokens; not used by "backbone".
    brain_width : int, default 64
        Width E of the brain tokens.
    width : int, default 64
        Common width W of the fusion.
    n_heads : int, default 4
        Number of heads of both cross-attentions.
    query : "cls" or "patch", default "cls"
        Which token is the query in the cross-attention, as in `CrossAttentionFusion`.
    hidden : int, optional
        Hidden width of the MLP; `width` by default.
    dropout : float, default 0
        Dropout rate before the last layer while training.

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
                    "choose one of them, and pass brain=... unless it is 'backbone'",
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

    def standardise_tokens(self, cls: Moments, patches: Moments) -> None:
        """Standardise tokens from now on, each dimension by its mean and standard deviation.

        Parameters
        ----------
        cls, patches : Moments
            Moments of the CLS and of the patch tokens of all training images.
        """
        for row, moments in enumerate((cls, patches)):
            self.token_mean[row] = moments.mean()
            self.token_scale[row] = moments.std().clamp_min(1e-4)

    def image_side(self, cls_BD: Tensor, patches_BPD: Tensor) -> ImageSide | None:
        """Return what depends on the tokens (B, D) and (B, P, D) alone; None for other heads."""
        if self.head != "fusion":
            return None
        return self.fusion.image_side(*self._standardised(cls_BD, patches_BPD))

    def _standardised(self, cls_BD: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens in standard deviations from their mean, read and written once."""
        shift = -self.token_mean / self.token_scale
        cls_BD = torch.addcmul(shift[0], cls_BD, 1 / self.token_scale[0])
        return cls_BD, torch.addcmul(shift[1], patches, 1 / self.token_scale[1])

    def _summary(self, cls_BD: Tensor, patches_BPD: Tensor) -> Tensor:
        """Return the standardised CLS token and mean patch, (B, 2 D)."""
        return torch.cat(self._standardised(cls_BD, patches_BPD.mean(1)), 1)

    def forward(
        self,
        cls_BD: Tensor,
        patches_BPD: Tensor,
        response_BV: Tensor | None = None,
        *,
        weights: bool = False,
        image_side: ImageSide | None = None,
    ) -> FusionOutput:
        """Return class scores.

        Parameters
        ----------
        cls_BD, patches_BPD : Tensor, shapes (B, D) and (B, P, D)
            Visual tokens.
        response_BV : Tensor, shape (B, V), optional
            Standardised predicted response of the vertices that the brain transformer reads; not
            used by "backbone".
        weights : bool, default False
            Return attention weights ("fusion" only).
        image_side : ImageSide, optional
            Result of `image_side` for the same visual tokens, if it was called before.

        Returns
        -------
        FusionOutput

        Raises
        ------
        RuntimeError
            If widths do not agree.
        """
        if self.head == "backbone":
            return FusionOutput(self.classifier(self._summary(cls_BD, patches_BPD)), None, None)
        brain_cls_BE, brain_BRE = self.brain(response_BV)
        attention = None
        if self.head == "fusion":
            if image_side is None:
                cls_BD, patches_BPD = self._standardised(cls_BD, patches_BPD)
            x_vb, x_bv, attention = self.fusion(
                cls_BD, patches_BPD, brain_cls_BE, brain_BRE, weights=weights, image_side=image_side
            )
        else:
            x_vb = self.project_visual(self._summary(cls_BD, patches_BPD))
            x_bv = self.project_brain(brain_cls_BE)
        return FusionOutput(self.classifier(torch.cat([x_vb, x_bv], 1)), x_vb, x_bv, attention)


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable scalar parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def matched_hidden(n_parameters: int, *, visual_width: int, n_classes: int) -> int:
    """Return the hidden width that gives a "backbone" model as many parameters as another model.

    Parameters
    ----------
    n_parameters : int
        Number of trainable parameters to match.
    visual_width : int
        Width D of the visual tokens.
    n_classes : int
        Number of classes C.

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
    require(
        abs(fixed + hidden * per_unit - n_parameters) <= 0.02 * n_parameters,
        ConfigError,
        f"a backbone head within 2 % of {n_parameters} parameters",
        f"{fixed + hidden * per_unit} with {hidden} hidden units",
        "raise FusionConfig.width, so that one hidden unit is a smaller share of all parameters",
    )
    return hidden
