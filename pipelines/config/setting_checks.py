"""Checks that several groups of settings share: counts, shares and shortlists within their bounds."""

from __future__ import annotations

from adapt.core.errors import ConfigError


def refuse_below(least: int, **counts: int) -> None:
    """Raise ConfigError for counts that are too small."""
    wrong = [f"{name}: {count} is less than {least}" for name, count in counts.items() if count < least]
    if wrong:
        raise ConfigError("; ".join(wrong))


def refuse_shortlist(count: int | None, *, coarse_to_fine: bool) -> None:
    """Raise ConfigError for a shortlist of no choice, or beside another way to spare labels."""
    if count is not None and count < 2:
        raise ConfigError(f"shortlist: {count} leaves nothing to choose from; give 2 or more, or null for all labels")
    if count is not None and coarse_to_fine:
        raise ConfigError("shortlist: coarse_to_fine=true spares labels in another way; choose one of both")


def refuse_no_share(**shares: float) -> None:
    """Raise ConfigError for what is no share."""
    wrong = [f"{name}: {share} is not between 0 and 1" for name, share in shares.items() if not 0 <= share <= 1]
    if wrong:
        raise ConfigError("; ".join(wrong))
