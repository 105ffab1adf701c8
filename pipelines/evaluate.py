"""Command `python -m pipelines.evaluate`: measure zero-shot accuracy and write predictions."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("evaluate")
