"""What a finetune launcher does between its settings and torchrun; needs the standard library alone."""
