"""`python -m pipelines`: the menu of commands."""

from __future__ import annotations

import sys

from pipelines.command_line.help import menu

if __name__ == "__main__":
    sys.stdout.write(menu())
