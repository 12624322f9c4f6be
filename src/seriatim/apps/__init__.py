"""Whole applications of the parts below: what they need beyond training and writing stands here."""
