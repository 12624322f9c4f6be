"""Backbones with ends on: tokens or values in, predictions out, the same contract."""
