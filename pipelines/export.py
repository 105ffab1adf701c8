"""Command `python -m pipelines.export`: pack an adapted model with all that answering needs."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("export")
