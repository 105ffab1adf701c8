"""The page of `pipelines.serve`: rows are pasted or chosen as a file, labels with probabilities come back.

One file without a request to anywhere but the server that it comes from; a content policy in it forbids others. What comes back is
put into the page as text, never as HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapt.core.errors import shown
from pipelines.report_page.templates import template


def serve_page(task: str, fields: Sequence[str], request_rows: int) -> str:
    """Return the page for a task whose rows have these fields; it sends at most `request_rows` rows at a time."""
    return template("serve.html").render(task=shown(task), fields=list(fields), request_rows=request_rows)
