"""Whole networks that are themselves mixers."""
