"""Measures a cluster from outside, as any client would."""
