"""Finished runs written by hand: artifacts as stages leave them, with answers that are right where a test says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact, ArtifactStore, StageKey
from adapt.core.typed import to_plain
from pseudo_label.accuracy import accuracy_of

DEV, FEW = 8, 4
GOLD = ["good", "bad"] * 6  # of dev, then few
CHANCE = "101010101010"


def answers_of(bits: str, gold: list[str]) -> list[str]:
    """Return answers that are right where there is a 1."""
    return [label if bit == "1" else {"good": "bad", "bad": "good"}[label] for bit, label in zip(bits, gold, strict=True)]


def produced(
    root: Path, place: str, stage: str, config: Any, metrics: Mapping[str, Any], files: Mapping[str, str], **inputs: Artifact
) -> Artifact:
    """Write an artifact into the store and link it, as a walk does."""
    store = ArtifactStore(root)

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        for name, text in files.items():
            (result / name).write_text(text, encoding="utf-8")
        return metrics

    artifact, _ = store.produce(StageKey(stage=stage, config=config, inputs=inputs), build, force=False, created=lambda: "now")
    store.link(place, artifact)
    return artifact


def make_run(
    root: Path,
    run: str,
    adapted: Mapping[str, str] | None,
    *,
    task: str = "reviews",
    seed: int = 0,
    base: Mapping[str, str] | None = None,
    gold: list[str] | None = None,
    criteria: list[dict[str, Any]] | None = None,
) -> None:
    """Write a finished run: `base` and `adapted` say by method which rows of dev and few are right, as bits."""
    gold = gold or GOLD
    base = base or {"raw": CHANCE[: len(gold)]}
    labels = produced(
        root, f"{run}/pseudo_label/{task}", "pseudo_label", {"task": task, "run": run},
        {"selected": 40, "rows": 100, "held_out": 0, "labelled": to_plain(accuracy_of(["a"] * 4, ["a", "a", "a", "b"]))},
        {"labels.json": run},
    )  # fmt: skip
    inputs = {}
    if adapted is not None:
        before = {
            "context": {"value": 4.0, "count": 30.0},
            "prompt": {"value": 2.0, "count": 10.0},
            "balance": {"value": 9.0, "count": 5.0},
        }
        after = {
            "context": {"value": 3.0, "count": 30.0},
            "prompt": {"value": 1.0, "count": 10.0},
            "balance": {"value": 9.0, "count": 5.0},
        }
        inputs["continue_pretrain"] = produced(
            root, f"{run}/continue_pretrain/{task}", "continue_pretrain",
            {"seed": seed, "run": run, "tasks": [{"task": {"name": task}}]},
            {"is_adapted": True, "held_out": {task: {"before": before, "after": after}}, "tokens_per_s": 50.0},
            {"history.jsonl": '{"tokens": 600.0}\n{"tokens": 400.0}\n', "weights": f"{run} {seed}"},
            pseudo_label=labels,
        )  # fmt: skip
    table, answers = [], []
    for model, by_method in {"base": base, "adapted": adapted or {}}.items():
        for method, bits in by_method.items():
            for split, rows in {"dev": slice(0, DEV), "few": slice(DEV, None)}.items():
                who = {"task": task, "split": split, "model": model, "method": method}
                given = answers_of(bits[rows], gold[rows])
                answers.append({**who, "answers": given, "gold": gold[rows]})
                entropy = 0.9 if split == "dev" else 0.6
                table.append({**who, **to_plain(accuracy_of(given, gold[rows])), "entropy": entropy, "seconds": 3.0})
    files = {"answers.json": json.dumps(answers)} | ({"criteria.json": json.dumps(criteria)} if criteria else {})
    produced(root, f"{run}/evaluate/{task}", "evaluate", {"task": task, "run": run}, {"table": table}, files, **inputs)
