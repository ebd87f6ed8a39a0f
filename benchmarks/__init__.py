"""What scripts/benchmark.py measures: one file a section, and the rivals."""
