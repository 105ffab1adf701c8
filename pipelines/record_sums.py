"""Command `python -m pipelines.record_sums`: record the sums of a checkpoint."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import record_sums

    sys.exit(run_plainly(record_sums.RecordConfig, record_sums.record, record_sums.__doc__ or ""))
