"""Command `python -m pipelines.distil`: a sparse base to a dense student of it."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("distil")
