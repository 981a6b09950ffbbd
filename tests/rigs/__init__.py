"""Longer runs than `make test` has time for: faults on real processes, many simulated seeds.

`make rigs` runs them all, `.ci/run` too. QUORUMQ_RIG_SEED chooses another run, QUORUMQ_RIG_SECONDS
and QUORUMQ_RIG_SEEDS a longer one; a failure names the seed that repeats it.
"""
