"""Weights by name: those in the package, and published ones that are downloaded."""
