"""Texts to vectors: the mean of a causal base's last hidden states over a text's tokens.

Texts are read in batches of similar length under a budget of padded tokens; a vector does not depend on its batch.

Legend: N texts, B rows, T columns, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from adapt.core.progress import progress
from adapt.core.scorer import FloatArray
from adapt.model.inputs import CausalBase, ModelInputs
from adapt.text.contract import TextTokenizer

_TOKENS_AT_ONCE = 4096


class MeanEncoder:
    """Encodes texts with a base; what is longer than the context is cut at its end."""

    def __init__(self, model: CausalBase, tokenizer: TextTokenizer, device: torch.device | str = "cpu") -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = torch.device(device)

    def encode(self, texts: Sequence[str], title: str = "encoding") -> FloatArray:
        """Return vectors [N, H]."""
        longest = self._model.context_length
        ids = [[self._tokenizer.bos_id, *found][:longest] for found in self._tokenizer.encode_documents(list(texts))]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors_NH = np.empty((len(ids), self._model.hidden_size))
        for batch in progress(_batches(order, ids), title, total=None, unit="batch"):
            vectors_NH[batch] = self._means([ids[index] for index in batch])
        return vectors_NH

    def _means(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        width = max(map(len, rows))
        ids_BT, documents_BT = (torch.zeros((len(rows), width), dtype=torch.int64) for _ in range(2))
        for place, row in enumerate(rows):
            ids_BT[place, : len(row)] = torch.tensor(row)
            documents_BT[place, : len(row)] = 1
        positions_BT = torch.arange(width).expand(len(rows), width).clone() * documents_BT
        inputs = ModelInputs(
            ids_BT=ids_BT,
            positions_BT=positions_BT,
            documents_BT=documents_BT,
            domains_BT=torch.zeros_like(ids_BT),
            is_packed=False,
        )
        with torch.inference_mode():
            hidden_BTH = self._model(inputs.to(self._device)).hidden_BTH.float()
            is_text_BT1 = (documents_BT > 0).to(self._device)[:, :, None]
            means_BH = torch.where(is_text_BT1, hidden_BTH, 0).sum(dim=1) / is_text_BT1.sum(dim=1)
        return np.asarray(means_BH.double().cpu().numpy())


def _batches(order: Sequence[int], ids: Sequence[Sequence[int]]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for index in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(ids[index]) > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]
