"""Command `python -m pipelines.corpus`: clean general text."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("corpus")
