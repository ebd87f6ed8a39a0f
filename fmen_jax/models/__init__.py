"""Network architectures as Flax modules and pure functions."""
