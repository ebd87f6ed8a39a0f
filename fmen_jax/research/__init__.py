"""Tools for research: sweeps over seeds and settings, ablations, and diagnostics of networks."""
