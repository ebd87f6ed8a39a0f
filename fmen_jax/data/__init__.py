"""Training and evaluation data: pairs of LR and HR images, and batches of patches."""
