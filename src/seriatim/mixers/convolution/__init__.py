"""Mixers that are convolutions with kernels as long as the sequence."""
