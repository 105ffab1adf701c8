"""Command `python -m pipelines.tokenizer`: train a tokenizer on corpus text."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("tokenizer")
