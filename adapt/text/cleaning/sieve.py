"""The filters that look at one document at a time, over a batch: documents in; kept ones, counts and samples of the dropped out."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adapt.text.cleaning.characters import Batch
from adapt.text.cleaning.config import CorpusConfig
from adapt.text.cleaning.normalising import normalised
from adapt.text.cleaning.overlap import EvaluationIndex
from adapt.text.cleaning.personal_data import masked
from adapt.text.cleaning.quality import verdicts, without_boilerplate
from adapt.text.corpus import Document

OVERLAP = "evaluation text"
_SAMPLE_CHARACTERS = 300


@dataclass
class Tally:
    """What filters did: documents and characters in and out, drops by filter, samples of them, and counts of what was changed."""

    read: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    characters_read: int = 0
    characters_kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    overlaps: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    boilerplate: int = 0

    def drop(self, reason: str, text: str, n_samples: int) -> None:
        """Count a dropped document; the first few of a reason are kept to be shown."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        some = self.samples.setdefault(reason, [])
        if len(some) < n_samples:
            some.append(text[:_SAMPLE_CHARACTERS])

    def add(self, other: Tally, n_samples: int) -> None:
        """Add what was counted elsewhere."""
        for name in ("read", "kept", "dropped", "masked", "overlaps"):
            own = getattr(self, name)
            for key, value in getattr(other, name).items():
                own[key] = own.get(key, 0) + value
        for name in ("characters_read", "characters_kept", "changed", "boilerplate"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, texts in other.samples.items():
            own_samples = self.samples.setdefault(reason, [])
            own_samples += texts[: max(n_samples - len(own_samples), 0)]


class Sieve:
    """Normalises, drops, and masks. What comes out of a document depends on that document only."""

    def __init__(self, config: CorpusConfig, index: EvaluationIndex | None, tally: Tally) -> None:
        self._config, self._index, self._tally = config, index, tally

    def sift(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Return rows of the kept documents: text, domain, and the original where settings keep it and it was changed."""
        config, tally = self._config, self._tally
        before = [document.text for document in documents]
        read = Batch.of(before)
        texts = without_boilerplate(normalised(read, config.normalise), config.quality.boilerplate)
        for domain, count in Counter(document.domain for document in documents).items():
            tally.read[domain] = tally.read.get(domain, 0) + count
        tally.characters_read += len(read.codes_N)
        batch = read if all(map(operator.is_, texts, before)) else Batch.of(texts)
        reasons = verdicts(batch, config.quality)
        for place, file in (self._index.overlaps(batch) if self._index is not None else {}).items():
            if reasons[place] is None:
                assert self._index is not None
                name = self._index.files[file]
                tally.overlaps[name] = tally.overlaps.get(name, 0) + 1
                reasons[place] = OVERLAP
        final = masked(batch, config.personal_data, tally.masked, [reason is None for reason in reasons])
        rows = []
        for document, old, text, reason in zip(documents, before, final, reasons, strict=True):
            if reason is not None:
                tally.drop(reason, text, config.samples)
                continue
            row = {"text": text, "domain": document.domain}
            if text != old:
                tally.changed += 1
                if config.normalise.keeps_original:
                    row["original"] = old
            tally.kept[document.domain] = tally.kept.get(document.domain, 0) + 1
            tally.characters_kept += len(text)
            rows.append(row)
        return rows
