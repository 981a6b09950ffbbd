"""One Raft group, pure: no IO, no clock, randomness by constructor."""
