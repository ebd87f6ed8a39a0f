"""Benchmarks run by scripts/benchmark.py: one module for each section, and the contenders."""
