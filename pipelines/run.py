"""The whole pipeline: `python -m pipelines.run key=value ...`; `stages=[...]` chooses, `-m` sweeps."""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.command_line.compose import main

    main("run")
