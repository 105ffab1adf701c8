"""Command `python -m pipelines.import_gguf`: a GGUF file to a Hugging Face directory."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import import_gguf

    sys.exit(run_plainly(import_gguf.ImportGGUFConfig, import_gguf.import_gguf, import_gguf.__doc__ or ""))
