"""Many nodes in one process on virtual time: same seed, same run."""
