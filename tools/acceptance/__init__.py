"""Checks of a GPU: what tools/gpu_acceptance.py runs, in four stages."""
