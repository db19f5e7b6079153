"""Losses of fusion models (with the Pearson regulariser) and of aligned models."""

from bmfl_lab.losses.alignment import alignment_loss, contrastive
from bmfl_lab.losses.pcc import fusion_loss, pearson_regulariser

__all__ = ["alignment_loss", "contrastive", "fusion_loss", "pearson_regulariser"]
