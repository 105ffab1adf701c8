"""Command `python -m pipelines.prompt_search`: rank prompts without labels."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("prompt_search")
