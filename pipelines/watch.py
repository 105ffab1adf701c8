"""Command `python -m pipelines.watch`: what runs now, in the terminal."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import watch

    sys.argv[1:] = watch.without_flags(sys.argv[1:])
    sys.exit(run_plainly(watch.WatchConfig, watch.main, watch.__doc__ or ""))
