"""`make demo`: the broker on real input, with a node killed half-way, and a check of every record.

source.py    what is published: the Python standard library, line by line
publish.py   idempotent producers
follow.py    a reader of the log, at the same time
outage.py    the kill, the restart, and what they did to the acknowledgements
verify.py    what was read, against the source
display.py   what a person sees meanwhile
__main__.py  the order of it all; the exit status tells the truth
"""
