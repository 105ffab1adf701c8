"""Command `python -m pipelines.gpu_check`: what wants a GPU: correctness against the CPU, then benchmarks."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.tools.gpu_check import main

    sys.exit(main(sys.argv[1:]))
