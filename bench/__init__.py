"""Measurements of a cluster from outside, see README.md. `python -m bench SCENARIO --json`."""
