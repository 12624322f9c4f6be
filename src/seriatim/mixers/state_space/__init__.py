"""Mixers that discretise a linear system in continuous time."""
