"""What a partition's log means: a pure, deterministic machine from commands to replies and effects.

commands.py   what can be said, and what is answered
machine.py    applies one command after the other
producers.py  who produced what last: sequences, epochs, the window of known batches
dedup.py      ids of stateless callers
positions.py  how far stream subscriptions are
state.py      a frozen copy of it all, in segments
retention.py  what is due: which records are too old or too many
"""
