"""Command `python -m pipelines.init`: a table to a task that runs."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import init

    sys.exit(run_plainly(init.InitConfig, init.main, init.__doc__ or ""))
