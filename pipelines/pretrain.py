"""Command `python -m pipelines.pretrain`: pretrain a base model on corpus text."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("pretrain")
