"""Standing here, it lets every test import what stands beside it (cases.py)."""
