"""Fuzzing of what users feed to fmen_jax, and of the moments at which it is killed.

`python -m tests.fuzz --help` lists the commands; docs/reliability.md explains the outcomes.
"""
