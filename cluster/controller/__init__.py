"""Cluster metadata: members, topics, replica sets, leader balance."""
