"""Command `python -m pipelines.generate`: continue prompts with a model."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main
    from pipelines.tools.generate import show

    main("generate", show)
