"""Command `python -m pipelines.label_tree`: propose a label tree for coarse-to-fine labelling."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("label_tree")
