"""Inference: load a checkpoint once, then images + question → answer."""
