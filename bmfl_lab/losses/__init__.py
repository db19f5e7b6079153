"""Losses: classification with the Pearson regulariser, and the alignment losses."""

from bmfl_lab.losses.pcc import fusion_loss, pearson_regulariser

__all__ = ["fusion_loss", "pearson_regulariser"]
