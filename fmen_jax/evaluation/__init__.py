"""Evaluation of networks: metrics, protocols, benchmark scores and costs."""
