"""Gives the bytes meaning: storage, partitions, services and the command line."""
