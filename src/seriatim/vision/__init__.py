"""Backbones of images: (batch, channels, height, width) to features."""
