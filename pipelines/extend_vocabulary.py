"""Command `python -m pipelines.extend_vocabulary`: new pieces for a base's vocabulary."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("extend_vocabulary")
