"""Command `python -m pipelines.import_checkpoint`: turn a foreign checkpoint into this project's form."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("import_checkpoint")
