"""Real node processes on loopback: what a simulation cannot show.

load.py    work for a cluster, and the account of what became of every record
stubs.py   generated stubs without the client library, as a program in any language has them
"""
