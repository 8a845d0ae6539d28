"""Training: arguments → data and model → trainer → output folder."""
