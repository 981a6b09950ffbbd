"""The `quorumq` command: one file a job, root.py puts them together."""
