"""From photographs to a trained network."""
