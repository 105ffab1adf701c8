"""Command `python -m pipelines.random_checkpoint`: write a checkpoint of random weights."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main
    from pipelines.tools.random_checkpoint import make

    main("random_checkpoint", make)
