"""Inference: upscaling of single pictures and of many files."""
