"""The state machine of a partition, pure and deterministic."""
