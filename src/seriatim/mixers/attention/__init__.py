"""Mixers that look back at the tokens themselves."""
