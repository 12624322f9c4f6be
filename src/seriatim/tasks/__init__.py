"""Synthetic tasks, each a seeded generator and its metric in one file. `seriatim list tasks` names them."""
