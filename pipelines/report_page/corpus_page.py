"""The page of a cleaned corpus: what each filter dropped, with samples, and what is left by domain. One file, without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapt.core.errors import shown
from pipelines.report_page.templates import template


def corpus_page(counts: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> str:
    """Return the page for what the filters counted and the shards that came out."""
    n_read = sum(counts["read"].values())
    domains = [
        {
            "name": shown(name),
            "read": n,
            "kept": counts["kept"].get(name, 0),
            "bytes": sum(shard["bytes"] for shard in shards if shard["domain"] == name),
        }
        for name, n in sorted(counts["read"].items())
    ]
    dropped = [
        {
            "reason": reason,
            "n": n,
            "share": n / n_read,
            "samples": [shown(text, "\n") for text in counts["samples"].get(reason, [])],
        }
        for reason, n in sorted(counts["dropped"].items(), key=lambda item: -item[1])
    ]
    return template("corpus.html").render(
        n_read=n_read,
        n_kept=sum(counts["kept"].values()),
        n_shards=len(shards),
        domains=domains,
        dropped=dropped,
        masked=sorted(counts["masked"].items()),
        overlaps=[(shown(name), n) for name, n in sorted(counts["overlaps"].items())],
        changed=counts["changed"],
    )
