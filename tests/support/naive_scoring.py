"""Zero-shot scoring written out a second time, as dumbly as it can be: one candidate, one text, one full forward pass.

Nothing here knows of trees, packing, passes or `Prompt`: it fills a template by hand and reads log-probabilities off the
model. Criteria are the published formulas over those. Tests compare the library with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from adapt.model.gpt import GPT
from adapt.model.inputs import ModelInputs
from adapt.text.tokenizer import Tokenizer
from pseudo_label.tasks import TaskConfig, TaskRow

Kinds = list[str]


@dataclass(frozen=True)
class Spoken:
    """A filled-in prompt after its forward pass: each predicted token's kind ('text', 'prompt' or 'label') and log-probability."""

    word: str
    tokens: list[tuple[str, float]]

    def sum_of(self, *kinds: str) -> float:
        return math.fsum(log_prob for kind, log_prob in self.tokens if kind in kinds)

    def count(self, *kinds: str) -> int:
        return sum(kind in kinds for kind, _ in self.tokens)


ANY = ("text", "prompt", "label")


def perplexity(spoken: Spoken) -> float:
    return math.exp(-spoken.sum_of(*ANY) / spoken.count(*ANY))


# criterion: its formula, given the candidate under the row, and the label's log-likelihood under the null context.
FORMULAS: dict[str, Callable[[Spoken, float], float]] = {
    "sum": lambda one, null: one.sum_of("label"),
    "mean": lambda one, null: one.sum_of("label") / one.count("label"),
    "per_character": lambda one, null: one.sum_of("label") / len(one.word),
    "perplexity": lambda one, null: -math.log(perplexity(one)),
    "total": lambda one, null: one.sum_of(*ANY),
    "pmi": lambda one, null: one.sum_of("label") - null,
    "total_pmi": lambda one, null: one.sum_of(*ANY) - null,
    "domain_pmi": lambda one, null: one.sum_of("label") - null,
    "total_domain_pmi": lambda one, null: one.sum_of(*ANY) - null,
    "channel": lambda one, null: one.sum_of("text"),
    "masked_lm": lambda one, null: one.sum_of("label"),
}
# Those that are always, and those that are never, read behind masks.
ALWAYS_MASKED, NEVER_MASKED = {"masked_lm"}, {"channel", "total", "total_pmi", "total_domain_pmi", "perplexity"}
WITHIN_A_DOMAIN = {"domain_pmi", "total_domain_pmi"}


@dataclass
class Naive:
    """The naive scorer of one task with one model; passes are remembered, so that criteria can share them.

    `domain` are the rows whose texts stand for the domain.
    """

    task: TaskConfig
    model: GPT
    tokenizer: Tokenizer
    domain: list[TaskRow] = field(default_factory=list)
    _spoken: dict[object, Spoken] = field(default_factory=dict)
    _last: tuple[tuple[list[int], bool], torch.Tensor] | None = None

    @cached_property
    def groups(self) -> list[str]:
        return list(self.task.label_tree or {})

    def words(self, prompt: str, row: TaskRow) -> list[str]:
        if row.candidates is not None:
            return list(row.candidates)
        own = self.task.prompts[prompt].label_words or self.task.label_words
        return [own[label] for label in self.task.labels]

    def keys(self, criterion: str, prompt: str, row: TaskRow, words: list[str], *, masked: bool = False) -> list[float]:
        """Return the criterion's key of each word, scored by itself; `masked` where the stage reads labels behind masks."""
        behind_masks = criterion in ALWAYS_MASKED or (masked and criterion not in NEVER_MASKED)
        formula = FORMULAS[criterion]
        nulls = [self.up_to_the_blank(one) for one in self.domain] if criterion in WITHIN_A_DOMAIN else [self.null_row(row)]
        found = []
        for word in words:
            against = [self.spoken(prompt, null, word, behind_masks).sum_of("label") for null in nulls]
            found.append(formula(self.spoken(prompt, row, word, behind_masks), math.fsum(against) / len(against)))
        return found

    def label_keys(self, criterion: str, prompt: str, row: TaskRow, *, masked: bool = False) -> list[float]:
        """Return the key of each label of a row: the mean over its word and its synonyms."""
        own = self.words(prompt, row)
        if row.candidates is not None:
            return self.keys(criterion, prompt, row, own, masked=masked)
        synonyms = self.task.prompts[prompt].synonyms or {}
        found = []
        for label, word in zip(self.task.labels, own, strict=True):
            keys = self.keys(criterion, prompt, row, [word, *synonyms.get(label, [])], masked=masked)
            found.append(math.fsum(keys) / len(keys))
        return found

    def null_row(self, row: TaskRow) -> TaskRow:
        texts = {name: self.task.fields[name].blank or "" for name in row.texts}
        return TaskRow(id=None, texts=texts, label=None, candidates=None, line=0)

    def up_to_the_blank(self, row: TaskRow) -> TaskRow:
        texts = {}
        for name, text in row.texts.items():
            blank = self.task.fields[name].blank
            texts[name] = text if blank is None else text[: text.index(blank)] + blank
        return TaskRow(id=None, texts=texts, label=None, candidates=None, line=0)

    def spoken(self, prompt: str, row: TaskRow, word: str, behind_masks: bool) -> Spoken:
        key = (prompt, tuple(row.texts.values()), word, behind_masks)
        if key not in self._spoken:
            ids, kinds = self.filled_in(prompt, row, word)
            self._spoken[key] = Spoken(word, self._read_off(ids, kinds, behind_masks, self.is_label_first(prompt)))
        return self._spoken[key]

    def is_label_first(self, prompt: str) -> bool:
        before, label, _ = self.task.prompts[prompt].template.partition("{label}")
        return bool(label) and "{" not in before

    def filled_in(self, prompt: str, row: TaskRow, word: str) -> tuple[list[int], Kinds]:
        """Return a prompt's token ids and their kinds; every piece is encoded by itself, after a document start."""
        pieces: list[tuple[str, str]] = []
        for piece in re.split(r"(\{\w+\})", self.task.prompts[prompt].template):
            if piece == "{label}":
                pieces.append((word, "label"))
            elif piece.startswith("{"):
                text, blank = row.texts[piece[1:-1]], self.task.fields[piece[1:-1]].blank
                if blank is None:
                    pieces.append((text, "text"))
                else:
                    place = text.index(blank)
                    pieces += [(text[:place], "text"), (word, "label"), (text[place + len(blank) :], "text")]
            else:
                pieces.append((piece, "prompt"))
        ids, kinds = [self.tokenizer.bos_id], ["text"]
        for text, kind in pieces:
            tokens = self.tokenizer.encode(text) if text else []
            ids += tokens
            kinds += [kind] * len(tokens)
        return ids, kinds

    def _read_off(self, ids: list[int], kinds: Kinds, behind_masks: bool, is_label_first: bool) -> list[tuple[str, float]]:
        """Return (kind, log-probability) of each token that is predicted.

        Behind masks, a mask predicts its own token; so the token before it predicts nothing, and what follows it is not predicted.
        Masks before the text see all of it, and nothing else is predicted there.
        """
        if not behind_masks:
            log_probs = self._forward(ids)
            return [(kinds[i], float(log_probs[i - 1, ids[i]])) for i in range(1, len(ids))]
        mask_id = self.tokenizer.mask_id
        assert mask_id is not None
        shown = [mask_id if kind == "label" else token for token, kind in zip(ids, kinds, strict=True)]
        log_probs = self._forward(shown, sees_all=is_label_first)
        found = []
        for i in range(1, len(ids)):
            if kinds[i] == "label":
                found.append(("label", float(log_probs[i, ids[i]])))
            elif kinds[i - 1] != "label" and not is_label_first:
                found.append((kinds[i], float(log_probs[i - 1, ids[i]])))
        return found

    @torch.inference_mode()
    def _forward(self, ids: list[int], *, sees_all: bool = False) -> torch.Tensor:
        if self._last is None or self._last[0] != (ids, sees_all):  # masked labels of one length are the same input
            assert len(ids) <= self.model.context_length, "the naive reference cuts nothing"
            ids_BT = torch.tensor([ids])
            inputs = ModelInputs(
                ids_BT=ids_BT,
                positions_BT=torch.arange(len(ids)).unsqueeze(0),
                documents_BT=torch.ones_like(ids_BT),
                domains_BT=torch.zeros_like(ids_BT),
                is_packed=False,
                mask_BSW=torch.ones(1, len(ids), len(ids), dtype=torch.bool) if sees_all else None,
            )
            self._last = ((ids, sees_all), self.model.logits(self.model(inputs).hidden_BTH[0]).log_softmax(-1))
        return self._last[1]


def naive_softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def naive_prior_biases(scores_NC: list[list[float]], prior_C: list[float]) -> np.ndarray:
    """Return the biases, summing to 0, for which the mean posterior is the prior: Newton steps on a convex function."""
    scores, prior = np.asarray(scores_NC), np.asarray(prior_C)
    biases = -scores.mean(axis=0)

    def loss(b: np.ndarray) -> float:
        shifted = scores + b
        top = shifted.max(axis=1)
        return float(np.mean(top + np.log(np.exp(shifted - top[:, None]).sum(axis=1))) - prior @ b)

    for _ in range(200):
        probs = np.asarray([naive_softmax(row) for row in (scores + biases).tolist()])
        gradient = probs.mean(axis=0) - prior
        curvature = np.diag(probs.mean(axis=0)) - probs.T @ probs / len(probs)
        step, size = -np.linalg.pinv(curvature, rcond=1e-12) @ gradient, 1.0
        while size > 1e-6 and loss(biases + size * step) > loss(biases):
            size /= 2
        biases = biases + size * step
        if np.abs(gradient).max() < 1e-10:
            break
    return np.asarray(biases - biases.mean())
