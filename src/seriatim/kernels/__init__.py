"""Compiled kernels of the ops, a folder for each kind of device, loaded when first used."""
