"""Command `python -m pipelines.settings_page`: write the reference of all settings."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from pipelines.command_line.plain_options import run_plainly
    from pipelines.tools import settings_page

    sys.exit(run_plainly(settings_page.PageConfig, settings_page.write, settings_page.__doc__ or ""))
