"""Command `python -m pipelines.verify`: compare logits with a reference."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import verify

    sys.exit(run_plainly(verify.VerifyConfig, verify.main, verify.__doc__ or ""))
