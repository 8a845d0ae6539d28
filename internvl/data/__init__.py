"""Data: annotation files → rows → samples → batches."""
