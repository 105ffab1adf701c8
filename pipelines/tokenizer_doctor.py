"""Command `python -m pipelines.tokenizer_doctor`: what a tokenizer does to texts and label words."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import tokenizer_doctor

    sys.exit(run_plainly(tokenizer_doctor.DoctorConfig, tokenizer_doctor.main, tokenizer_doctor.__doc__ or ""))
