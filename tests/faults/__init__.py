"""Damaged inputs to every reader of files that users bring."""
