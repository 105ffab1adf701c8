"""Command `python -m pipelines.study`: compare finished runs."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main
    from pipelines.tools.study import show

    main("study", show)
