"""Trained models made smaller: quantisation of selective state spaces after training."""
