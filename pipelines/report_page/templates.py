"""The HTML templates beside this file; whatever is put into one is escaped."""

from __future__ import annotations

import functools

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@functools.cache
def template(name: str) -> Template:
    """Return a template by its file's name."""
    loader = PackageLoader("pipelines", "report_page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(name)
