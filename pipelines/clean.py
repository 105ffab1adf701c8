"""Command `python -m pipelines.clean`: show and remove what no run needs."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main
    from pipelines.tools.clean import show

    main("clean", show)
