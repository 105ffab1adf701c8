"""The base in the box: small enough to ship, whole, described, and used by the demo."""

from __future__ import annotations

import torch

from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.checkpoint.weights import is_bare_checkpoint, is_router, iterate_tensors, load_config
from adapt.model.counting import count_parameters
from pipelines.config.locations import demo_dir
from tests.support.command_line import FP32_SCORES, composed

BASE = demo_dir() / "base"
MOST_BYTES = 24_000_000


def test_it_is_a_whole_checkpoint_that_fits_into_the_repository() -> None:
    assert is_bare_checkpoint(BASE)
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= MOST_BYTES
    dtypes = {name: tensor.dtype for name, tensor in iterate_tensors(BASE)}
    assert {dtype for name, dtype in dtypes.items() if not is_router(name)} == {torch.bfloat16}
    assert {dtype for name, dtype in dtypes.items() if is_router(name)} == {torch.float32}


def test_it_reads_and_writes_chinese() -> None:
    opened = open_checkpoint(BASE, FP32_SCORES)
    text = "物流很快，包装也好；这句话表达的是满意。"
    assert opened.tokenizer.decode(opened.tokenizer.encode(text)) == text
    assert len(opened.tokenizer.encode(text)) < len(text)
    assert opened.tokenizer.mask_id is not None


def test_its_card_says_what_it_is() -> None:
    card = (BASE / "README.md").read_text(encoding="utf-8")
    counts = count_parameters(load_config(BASE))
    assert f"{counts.total / 1e6:.1f}M" in card and f"{counts.active / 1e6:.1f}M" in card
    for word in ("Licen", "Limits", "held-out", "CC BY-SA", "Apache-2.0"):
        assert word in card


def test_the_demo_starts_from_it() -> None:
    config = composed("run", ["experiment=demo"])
    assert config.checkpoint == str(BASE)
    assert "pretrain" not in config.stages
