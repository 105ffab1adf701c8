"""Texts that go on: prompts as tokens in, continuations as text out, by any base and its tokenizer.

Prompts of about one length grow together (`continuing.py`; a Hugging Face model by its own `generate`). A text ends at a token that
ends or starts a document, before a text of `stop`, after `max_tokens`, or with the context. Draws follow from the seed and the
prompt, so that a prompt's text is the same whatever its batch holds; a prompt that comes again gets draws of its own.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.core.runtime import seed_for
from adapt.model.continuing import Growing, continue_rows
from adapt.model.hf import HFModel
from adapt.model.hf_generating import continue_by_generate
from adapt.model.inputs import CausalBase
from adapt.model.sampling import next_tokens
from adapt.model.sampling_config import GenerationConfig
from adapt.text.contract import TextTokenizer

_UNFINISHED = "\ufffd"  # what bytes decode to that are no whole character yet


class Ending(enum.Enum):
    """Why a text ended: at a token that ends it, before a text of `stop`, after `max_tokens`, or where the context does."""

    END = "end"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"
    CONTEXT = "context"


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A prompt's continuation. `n_tokens` counts the tokens that were added, those that ended it included."""

    text: str
    n_tokens: int
    ending: Ending


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """How added tokens read as text, and where that ends."""

    tokenizer: TextTokenizer
    ends: frozenset[int]
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: CausalBase, tokenizer: TextTokenizer, stop: Sequence[str]) -> TextRules:
        """Return the rules for a base; of a Hugging Face model, the end tokens that its own settings name count too."""
        ends = {tokenizer.eos_id, tokenizer.bos_id}
        named = model.causal.generation_config.eos_token_id if isinstance(model, HFModel) else None
        ends.update([named] if isinstance(named, int) else named or [])
        return cls(tokenizer=tokenizer, ends=frozenset(ends), stop=tuple(stop))

    def encode(self, prompt: str) -> list[int]:
        """Return a prompt's tokens behind a document's start."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode_documents([prompt])[0]]

    def text(self, added: Sequence[int]) -> str:
        """Return added tokens as text: without an end token, and cut before the first text of `stop`."""
        text = self._decoded(added)
        return text[: min((place for stop in self.stop if (place := text.find(stop)) >= 0), default=None)]

    def settled(self, added: Sequence[int]) -> str:
        """Return the part of the text that further tokens do not change."""
        text = self.text(added).rstrip(_UNFINISHED)
        held = max((n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return text[: len(text) - held]

    def ending(self, added: Sequence[int]) -> Ending | None:
        """Return why a text ends with its last token, if it does."""
        if added and added[-1] in self.ends:
            return Ending.END
        return Ending.STOP if self.stop and any(stop in self._decoded(added) for stop in self.stop) else None

    def _decoded(self, added: Sequence[int]) -> str:
        return self.tokenizer.decode(added[:-1] if added and added[-1] in self.ends else added)


def keys_of(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Return what each prompt's draws follow from: the seed, its tokens, and how often it came before."""
    seen: dict[tuple[int, ...], int] = {}
    found = []
    for prompt in prompts:
        tokens = tuple(prompt)
        seen[tokens] = seen.get(tokens, 0) + 1
        found.append(seed_for(seed, "generate", tokens, seen[tokens]))
    return found


def generate(
    model: CausalBase,
    rules: TextRules,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[int],
    config: GenerationConfig,
    device: torch.device | str = "cpu",
    watch: Callable[[int, Sequence[int]], None] = lambda prompt, added: None,
) -> list[Generated]:
    """Return each prompt's continuation. Prompts are shorter than the context; `watch` sees each added token of each prompt."""
    found: dict[int, Generated] = {}
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), config.batch_rows):
        places = order[start : start + config.batch_rows]
        rows = _growing(model, rules, [prompts[p] for p in places], [keys[p] for p in places], config, _by_place(watch, places))
        if isinstance(model, HFModel):
            continue_by_generate(model, rows, device)
        else:
            continue_rows(model, rows, device)
        for place, added, most in zip(places, rows.added, rows.most, strict=True):
            at_most = Ending.MAX_TOKENS if most == config.max_tokens else Ending.CONTEXT
            ending = rules.ending(added) or at_most
            found[place] = Generated(text=rules.text(added), n_tokens=len(added), ending=ending)
    return [found[place] for place in range(len(prompts))]


def _by_place(watch: Callable[[int, Sequence[int]], None], places: Sequence[int]) -> Callable[[int, Sequence[int]], None]:
    return lambda row, added: watch(places[row], added)


def _growing(
    model: CausalBase,
    rules: TextRules,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[int],
    config: GenerationConfig,
    watch: Callable[[int, Sequence[int]], None],
) -> Growing:
    keys_B = torch.tensor(keys, dtype=torch.int64)

    def choose(logits_BV: Tensor, rows: Growing) -> Tensor:
        step = len(rows.added[rows.going[0]])
        return next_tokens(logits_BV, rows.so_far(), keys_B[rows.going], step, config)

    def is_over(row: int, added: Sequence[int]) -> bool:
        watch(row, added)
        return rules.ending(added) is not None

    most = [min(config.max_tokens, model.context_length - len(prompt)) for prompt in prompts]
    return Growing(beginnings=prompts, most=most, choose=choose, is_over=is_over)
