"""Run by itself, with the packages of this project out of reach: opens directories with transformers and saves what they compute.

Argument: a directory of cases (each a directory with `model` and `rows.npz`, which says whether files are written again by
`save_pretrained`). Each case gets `found.npz`: logits of its rows padded on the right, on the left, and read token by token with a
cache; and the greedy continuations with and without a cache.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Refusing(MetaPathFinder):
    """Refuses imports of this project: what is opened has to stand by itself."""

    def find_spec(self, name: str, *others: Any) -> None:
        if name.split(".")[0] in ("adapt", "pseudo_label", "pipelines"):
            raise ImportError(f"{name} is out of reach here")


def padded(rows: list[list[int]], side: str, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.int64)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[at, place], mask[at, place] = torch.tensor(row), 1
    return ids, mask


@torch.no_grad()
def computed(model: Any, rows: list[list[int]], domains: torch.Tensor, steps: int) -> dict[str, np.ndarray]:
    pad = model.config.pad_token_id
    known = {"domain_ids": domains} if hasattr(model.config, "domain") else {}
    found: dict[str, np.ndarray] = {}
    for side in ("right", "left"):
        ids, mask = padded(rows, side, pad)
        logits = model(input_ids=ids, attention_mask=mask, **known).logits
        for at in range(len(rows)):
            found[f"{side}_{at}"] = logits[at][mask[at].bool()].float().numpy()
    ids, mask = padded(rows, "left", pad)
    past: Any = None
    pieces: list[torch.Tensor] = []
    for place in range(ids.shape[1]):
        output = model(input_ids=ids[:, place : place + 1], attention_mask=mask[:, : place + 1], past_key_values=past,
                       use_cache=True, **known)  # fmt: skip
        past, pieces = output.past_key_values, [*pieces, output.logits]
    stepwise = torch.cat(pieces, dim=1)
    for at in range(len(rows)):
        found[f"stepwise_{at}"] = stepwise[at][mask[at].bool()].float().numpy()
    for uses_cache in (True, False):
        made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, use_cache=uses_cache,
                              eos_token_id=None, **known)  # fmt: skip
        found[f"greedy_{uses_cache}"] = made[:, ids.shape[1] :].numpy()
    return found


def main(cases: Path) -> None:
    sys.meta_path.insert(0, Refusing())
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(Path.cwd()))]
    from transformers import AutoModelForCausalLM

    for case in sorted(cases.iterdir()):
        given = np.load(case / "rows.npz")
        rows = [given[f"row_{at}"].tolist() for at in range(int(given["n_rows"]))]
        model, said = AutoModelForCausalLM.from_pretrained(
            case / "model", trust_remote_code=True, output_loading_info=True, dtype=str(given["dtype"])
        )
        assert not any(said[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), (case.name, said)
        if given["again"]:
            model.save_pretrained(case / "again")
            model = AutoModelForCausalLM.from_pretrained(case / "again", trust_remote_code=True, dtype=str(given["dtype"]))
        model.eval()
        found: dict[str, Any] = {**computed(model, rows, torch.from_numpy(given["domains"]), int(given["steps"]))}
        np.savez(case / "found.npz", **found)
    assert not {"adapt", "pseudo_label", "pipelines"} & {name.split(".")[0] for name in sys.modules}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
