"""Labels of one token: this project's scorer against lm-evaluation-harness and a scorer that does what the harness does.

The harness reads a text once for all labels of one token, in batches of 16 sorted by length, and makes logits and their softmax at
every position. `like harness` is that, on the same model object, for machines without the package. Texts are random tokens of
various lengths, as sentences are. Before anything is timed all ways have to agree on every sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapt.checkpoint.weights import load_model
from adapt.core.errors import ConfigError
from adapt.core.runtime import generator_for
from adapt.core.spans import IntArray, LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel
from adapt.model.inputs import ModelInputs
from adapt.scoring.scorer_config import ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from pipelines.bench.contract import Benchmark, cpu_seconds, interleaved_medians, register, wall_seconds
from pipelines.bench.lm_eval_baseline import BATCH_ROWS, gpt2_twin, harness, harness_sums, missing_packages, requests_of
from pipelines.bench.options import is_cpu_time, number, only
from pipelines.bench.scoring_cases import LABEL_KINDS, scoring_model

_NAME = "one_token"
_AGREEMENT = 1e-3
_LABELS = (2, 6)
_SHORTEST, _LONGEST = 16, 96
_OURS, _LIKE, _HARNESS = "tree", "like harness", "lm-eval"

Way = Callable[[], list[float]]


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, "checkpoint", "rows", "rounds", "clock")
    n_rows, rounds = number(_NAME, options, "rows", 64), number(_NAME, options, "rounds", 3)
    stopwatch = cpu_seconds if is_cpu_time(_NAME, options, torch.get_num_threads(), "cpu") else wall_seconds
    model = _model(options)
    lm = None if missing_packages() else harness(gpt2_twin(model) if isinstance(model, GPT) else model.causal)
    found = []
    for n_labels in _LABELS:
        examples = [_example(n_labels, index, model.vocab_size) for index in range(n_rows)]
        ways = ways_of(model, lm, examples)
        agreed = {name: way() for name, way in ways.items()}
        worst = max(float(np.abs(np.asarray(sums) - agreed[_OURS]).max()) for sums in agreed.values())
        if not worst <= _AGREEMENT:
            raise ConfigError(f"bench {_NAME}: sums differ by {worst:.2e}; figures would mean nothing")
        seconds = interleaved_medians(ways, rounds, stopwatch)
        found.append(
            {"labels": n_labels, "rows": n_rows}
            | {f"{name} ms/row": 1000 * value / n_rows for name, value in seconds.items()}
            | {f"{name}/{_OURS}": value / seconds[_OURS] for name, value in seconds.items() if name != _OURS}
            | {"largest difference": worst}
        )
    return found


def ways_of(model: GPT | HFModel, lm: Any, examples: list[list[Reading]]) -> dict[str, Way]:
    """Return every way to get the candidates' sums, in the order of the examples."""
    scorer = TreeScorer(model, ScorerConfig())
    requests = requests_of(examples)
    ways: dict[str, Way] = {
        _OURS: lambda: [float(total) for sums in scorer.score(examples, LABEL_KINDS) for total in sums[:, Span.LABEL]],
        _LIKE: lambda: _like_harness(model, examples),
    }
    if lm is not None:
        ways[_HARNESS] = lambda: harness_sums(lm, requests)
    return ways


@torch.inference_mode()
def _like_harness(model: GPT | HFModel, examples: Sequence[Sequence[Reading]]) -> list[float]:
    """Read each text once, longest first, 16 at a time, with log-probabilities at every position."""
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place][0].inputs_T))
    sums: dict[int, list[float]] = {}
    for start in range(0, len(order), BATCH_ROWS):
        places = order[start : start + BATCH_ROWS]
        texts = [text_of(examples[place][0]) for place in places]
        ids_BT, documents_BT = (torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64) for _ in range(2))
        for row, text in enumerate(texts):
            ids_BT[row, : len(text)], documents_BT[row, : len(text)] = torch.from_numpy(text), 1
        positions_BT = torch.arange(ids_BT.shape[1]).repeat(len(texts), 1)
        inputs = ModelInputs(
            ids_BT=ids_BT, positions_BT=positions_BT * documents_BT, documents_BT=documents_BT,
            domains_BT=torch.zeros_like(ids_BT), is_packed=False,
        )  # fmt: skip
        log_probs_BTV = model.logits(model(inputs).hidden_BTH).float().log_softmax(dim=-1)
        for row, place in enumerate(places):
            last_V = log_probs_BTV[row, len(texts[row]) - 1]
            sums[place] = [float(last_V[int(reading.targets_T[len(texts[row]) - 1])]) for reading in examples[place]]
    return [total for place in range(len(examples)) for total in sums[place]]


def text_of(reading: Reading) -> IntArray:
    """Return what is read before a label: its last token asks for the label."""
    return reading.inputs_T[: int(np.flatnonzero(reading.kinds_T == int(Span.LABEL))[0]) + 1]


def _model(options: Mapping[str, str]) -> GPT | HFModel:
    if "checkpoint" not in options:
        return scoring_model()
    place = Path(options["checkpoint"])
    if not place.is_dir():
        raise ConfigError(f"bench {_NAME}: checkpoint={place}: no such directory")
    return load_model(place)


def _example(n_labels: int, index: int, vocab_size: int) -> list[Reading]:
    """Return readings of one text with each of some labels of one token."""
    random = generator_for("bench one_token", n_labels, index)
    text = random.integers(5, vocab_size, int(random.integers(_SHORTEST, _LONGEST + 1)))
    kinds_T = np.asarray([int(Span.CONTEXT)] * len(text) + [int(Span.LABEL)], np.int64)
    labels = random.choice(vocab_size, n_labels, replace=False)
    texts = [SpannedText(ids_T=np.append(text, label).astype(np.int64), kinds_T=kinds_T) for label in labels]
    return [read_with_targets(text, LabelForm.CLM) for text in texts]


register(
    Benchmark(
        name=_NAME,
        title=f"Labels of one token, milliseconds per row; texts of {_SHORTEST} to {_LONGEST} tokens, fp32",
        baseline=f"lm-eval (HFLM, batch {BATCH_ROWS}) where it is installed, and a scorer that does what it does",
        run=_run,
    )
)
