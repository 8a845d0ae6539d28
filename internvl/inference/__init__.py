"""Inference: load a checkpoint once, then pictures + question → answer."""
