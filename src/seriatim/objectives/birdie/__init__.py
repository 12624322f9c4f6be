"""Birdie: a mixture of denoising objectives, and what chooses how often each is trained."""
