"""How much of each part is kept where a text is too long."""

from __future__ import annotations


def shorten(lengths: dict[int, int], room: int) -> dict[int, int]:
    """Cut the longest first, so that short parts stay whole: the water-filling of `room` tokens."""
    left, result = room, {}
    for count, (index, length) in enumerate(sorted(lengths.items(), key=lambda item: item[1])):
        share = left // (len(lengths) - count)
        result[index] = min(length, share)
        left -= result[index]
    return result
