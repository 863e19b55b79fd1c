"""Command lines: the flags of every algorithm script, and the `rlzoo` command."""

from rlzoo.cli.commands import main, script

__all__ = ["main", "script"]
