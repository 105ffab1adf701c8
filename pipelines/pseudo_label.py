"""Command `python -m pipelines.pseudo_label`: label unlabeled rows."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("pseudo_label")
