"""The command line."""

from ditbench.cli.commands import main

__all__ = ["main"]
