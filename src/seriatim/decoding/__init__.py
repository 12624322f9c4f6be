"""Choosing tokens and writing sequences with any model, through the contract alone."""
