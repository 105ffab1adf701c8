"""Command `python -m pipelines.serve`: answer over HTTP with an export."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main
    from pipelines.tools.serve import run

    main("serve", run)
