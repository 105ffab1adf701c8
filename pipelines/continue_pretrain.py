"""Command `python -m pipelines.continue_pretrain`: adapt a model to pseudo-labelled rows."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("continue_pretrain")
