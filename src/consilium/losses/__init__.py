"""Losses on logits: Dice and cross-entropy per structure, unknown ones left out, at one or several scales."""
