"""A prompt as turns of a conversation: its text before the label is the user's, and the label begins the assistant's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapt.core.spans import Span
from adapt.text.contract import ChatForm
from pseudo_label.whole_text import TextPart


def in_turns(parts: Sequence[TextPart], form: ChatForm) -> list[TextPart]:
    """Put a row's parts, the label's as the last, into the frame of a conversation.

    Spaces around the user's text are left out, as most chat templates leave them out.
    """
    label = next(place for place, part in enumerate(parts) if part.kind is Span.LABEL)
    return [
        TextPart(text=form.coded_before, kind=Span.PROMPT),
        *_without_outer_spaces(parts[:label]),
        TextPart(text=form.coded_after, kind=Span.PROMPT, ends_turn=True),
        TextPart(text=form.gap, kind=Span.PROMPT),
        parts[label],
    ]


def user_text(framed: Sequence[TextPart]) -> str:
    """Return the user's text of parts that `in_turns` returned."""
    return "".join(part.text for part in framed[1:-3])


def _without_outer_spaces(parts: Sequence[TextPart]) -> list[TextPart]:
    found = list(parts)
    for places, strip in ((range(len(found)), str.lstrip), (reversed(range(len(found))), str.rstrip)):
        for place in places:
            found[place] = replace(found[place], text=strip(found[place].text))
            if found[place].text:
                break
    return found
