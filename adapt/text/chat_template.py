"""Chat templates of Hugging Face bases: the text that stands before and after a user's text, up to the assistant's answer.

A template is a Jinja program in `chat_template.jinja`, or under `chat_template` in `tokenizer_config.json` (of several, `default`).
It runs in Jinja's sandbox, as in transformers' `apply_chat_template(..., add_generation_prompt=True)`. One thing differs: a
template that asks for today's date always gets `TODAY`, so that a prompt does not change from day to day.

The frame of a conversation is found once, with a stand-in for the user's text. A template that changes the text inside the frame is
refused. Special tokens that the template writes are recoded (`recoded`), so that a text which spells one of them remains a text.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from adapt.core.errors import ConfigError
from adapt.core.json_files import parsed_json

TEMPLATE_FILE = "chat_template.jinja"
TODAY = datetime.date(2024, 7, 26)
_SETTINGS_FILE = "tokenizer_config.json"
_USER, _ANSWER = "moe-adapt-user-text", "moe-adapt-answer"
_PROBES = ("a {{b}} <c> {% d %}", "line one\n\n  'line' \"two\"", "好，1.")
_FIRST_MARK = 0xF0000  # of the private use area


@dataclass(frozen=True, kw_only=True)
class ChatFrame:
    """The text before a user's text and after it; `gap` are the spaces that the template puts before an answer."""

    before: str
    after: str
    gap: str


def template_in(files: Mapping[str, bytes]) -> str | None:
    """Return the chat template among a tokenizer's files, None where there is none."""
    if TEMPLATE_FILE in files:
        return files[TEMPLATE_FILE].decode("utf-8")
    found = parsed_json(files[_SETTINGS_FILE]).get("chat_template") if _SETTINGS_FILE in files else None
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None


def frame_of(template: str, tokens: Mapping[str, str], system: str | None, where: str) -> ChatFrame:
    """Return the frame that a template puts around a user's text, behind the turn of a `system` text where one is given.

    `tokens` are special tokens by the names that templates use (`bos_token`); `where` names the template in errors.

    Raises:
        ConfigError: the template is damaged, refuses these turns, leaves the system's text out, or changes the user's text.
    """
    lead = [] if system is None else [{"role": "system", "content": system}]

    def rendered(user: str, answer: str | None = None) -> str:
        messages = [*lead, {"role": "user", "content": user}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return _rendered(template, messages, tokens, where, asks_for_answer=answer is None)

    whole = rendered(_USER)
    if whole.count(_USER) != 1:
        raise ConfigError(f"{where}: writes the user's text {whole.count(_USER)} times; leave chat out of the prompt")
    before, after = whole.split(_USER)
    for probe in _PROBES:
        if rendered(probe) != before + probe + after:
            raise ConfigError(f"{where}: changes the user's text ({probe!r}); leave chat out of the prompt")
    if system is not None and system.strip() not in before + after:
        raise ConfigError(f"{where}: leaves the system's text out; write it into the prompt's template instead")
    try:
        answered = rendered(_USER, _ANSWER)
    except ConfigError:  # a template for questions only
        answered = ""
    gap = answered[len(whole) :].partition(_ANSWER)[0] if answered.startswith(whole) and _ANSWER in answered else ""
    return ChatFrame(before=before, after=after, gap=gap if not gap.strip() else "")


def special_names(settings: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return special tokens by the names that templates use, from a tokenizer's settings; the first that name one count."""
    found: dict[str, str] = {}
    for one in settings:
        for name, token in one.items():
            token = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(token, str):
                found.setdefault(name, token)
    return found


def recoded(text: str, marks: Sequence[str]) -> str:
    """Return a text with each special token spelled in private characters, as many as it has: places stay the same.

    Where several tokens begin at one place the longest counts, as tokenizers read them.
    """
    numbers = {mark: number for number, mark in enumerate(marks)}
    longest_first = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
    return re.sub(longest_first, lambda found: _code(numbers[found[0]], found[0]), text) if marks else text


def with_codes(description: Mapping[str, Any], marks: Sequence[str]) -> dict[str, Any]:
    """Return a `tokenizer.json` that reads the private spellings of special tokens, by ids of their own."""
    added = list(description.get("added_tokens") or [])
    by_content = {token.get("content"): token for token in added}
    next_id = 1 + max((int(token["id"]) for token in added), default=0)
    further = [
        {**by_content[mark], "id": next_id + number, "content": _code(number, mark), "special": False, "normalized": False}
        for number, mark in enumerate(marks)
    ]
    return {**description, "added_tokens": [*added, *further]}


def codes(marks: Sequence[str]) -> list[str]:
    """Return the private spelling of each special token."""
    return [_code(number, mark) for number, mark in enumerate(marks)]


def _code(number: int, mark: str) -> str:
    return chr(_FIRST_MARK + number) * len(mark)


class _Generation(Extension):
    """Reads `{% generation %}`, which marks the assistant's text for training in transformers, as nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A template's `namespace`, which takes no name with an underscore in front: none leads out of the sandbox."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace takes no name like {name!r}")
        super().__setitem__(name, value)


def _rendered(
    template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str], where: str, *, asks_for_answer: bool
) -> str:
    values = {"messages": messages, "add_generation_prompt": asks_for_answer, "tools": None, "documents": None}
    try:
        return _environment().from_string(template).render({**tokens, **values})
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{where}: cannot write this conversation ({' '.join(str(error).split())})") from error


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
    made.filters["tojson"] = _as_json
    made.globals.update(raise_exception=_refused, strftime_now=TODAY.strftime, namespace=_Namespace, dict=lambda **items: {**items})
    return made


def _refused(message: str) -> None:
    raise TemplateError(message)


def _as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **others: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **others)
