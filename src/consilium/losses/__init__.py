"""Losses on logits: Dice and cross-entropy per structure, unknown structures left out, at one or several scales."""
