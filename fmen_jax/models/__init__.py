"""The networks, as Flax modules and pure functions."""
