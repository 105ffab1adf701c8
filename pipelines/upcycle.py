"""Command `python -m pipelines.upcycle`: a dense checkpoint to a sparse one with the same answers."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import upcycle

    sys.exit(run_plainly(upcycle.UpcycleConfig, upcycle.upcycle, upcycle.__doc__ or ""))
