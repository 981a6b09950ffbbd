"""Scripted stories of one group, with recorded output. See runner.py for their language."""
