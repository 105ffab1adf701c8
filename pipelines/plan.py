"""Command `python -m pipelines.plan`: parameters of a model and memory per rank."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main
    from pipelines.tools.plan import show

    main("plan", show)
