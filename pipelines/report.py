"""Command `python -m pipelines.report`: write a run's report as one HTML page."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("report")
