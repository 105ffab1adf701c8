"""Command `python -m pipelines.predict`: label rows with an export."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("predict")
