"""Synthetic tasks, each a seeded generator and its metric in one file."""
