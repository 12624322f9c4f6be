"""The `seriatim` command."""

from seriatim.cli.dispatch import main

__all__ = ["main"]
