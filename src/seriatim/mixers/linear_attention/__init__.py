"""Mixers whose memory is written by sums: matrices of outer products, running softmax."""
