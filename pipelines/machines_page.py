"""Command `python -m pipelines.machines_page`: write which model trains on which machine."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import machines_page

    sys.exit(run_plainly(machines_page.MachinesConfig, machines_page.write, machines_page.__doc__ or ""))
