"""Mixers whose next state is a nonlinear function of the last one."""
