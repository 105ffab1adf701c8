"""Command `python -m pipelines.swap`: NVMe swap: plan, apply, undo."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import swap

    sys.exit(run_plainly(swap.SwapConfig, swap.main, swap.__doc__ or "", first_word="action"))
