"""Evaluation: scores of generated captions, and the report that shows them beside the images."""
