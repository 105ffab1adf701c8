"""Command `python -m pipelines.tune`: time training steps under other settings, and name the fastest that fit."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main
    from pipelines.tools.tune import show

    main("tune", show)
