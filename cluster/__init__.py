"""Agrees on bytes: the project's own Raft, its host and the cluster's controller."""
