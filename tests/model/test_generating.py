"""Generated texts: with a cache and in batches what one full pass after another gives, for every router, paged, and foreign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers import GenerationConfig as TheirConfig

from adapt.checkpoint.offload import OffloadConfig, WeightsIn
from adapt.checkpoint.open_checkpoint import OpenCheckpoint, open_checkpoint
from adapt.checkpoint.weights import load_model, open_paged, save_model
from adapt.core.precision import Precision
from adapt.model.buffers import named_state
from adapt.model.continuing import Growing, continue_rows
from adapt.model.generating import Ending, Generated, TextRules, generate, keys_of
from adapt.model.gpt import GPT, materialize
from adapt.model.hf import HFModel
from adapt.model.hf_families import FAMILIES
from adapt.model.hf_generating import continue_by_generate
from adapt.model.sampling_config import GenerationConfig
from adapt.scoring.scorer_config import ScorerConfig
from tests.support.full_passes import one_by_one
from tests.support.hf_checkpoints import make_checkpoint, make_model
from tests.support.router_variants import VARIANTS
from tests.support.tiny_models import DEMO, tiny_config

_N = 9
_PROMPTS = ["今天天气很好，", "我", "这家店的菜", "今天天气很好，", "质量"]


def beginnings() -> list[list[int]]:
    """Return rows of various lengths, two of them alike."""
    random = np.random.default_rng(3)
    found = [random.integers(5, 60, n).tolist() for n in (4, 1, 7, 4, 12)]
    return [*found, found[2]]


def greedy(rows: Sequence[Sequence[int]], most: Sequence[int]) -> Growing:
    return Growing(beginnings=rows, most=most, choose=lambda logits_BV, _: logits_BV.argmax(dim=-1))


def random_gpt(**changes: Any) -> GPT:
    """Return a model in which biases, norms and states are random too."""
    model = materialize(GPT(tiny_config(vocab_size=60, **changes)), seed=2)
    torch.manual_seed(2)
    with torch.no_grad():
        for _, tensor in named_state(model):
            tensor.add_(0.05 * torch.randn_like(tensor))
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_padded_batch_on_a_cache_grows_as_single_rows_without_one(name: str) -> None:
    model = random_gpt(router=VARIANTS[name], experts=[4, 6])
    rows = greedy(beginnings(), [_N, 3, _N, 1, _N, 5])
    continue_rows(model, rows)
    assert rows.added == [one_by_one(model, row, most) for row, most in zip(beginnings(), rows.most, strict=True)]
    assert len({tuple(added[:1]) for added in rows.added}) > 1


@pytest.mark.parametrize("way", [WeightsIn.MMAP, WeightsIn.RING])
def test_a_model_that_reads_its_weights_from_disk_says_the_same(way: WeightsIn, tmp_path: Path) -> None:
    model = random_gpt()
    save_model(tmp_path, model.config, named_state(model), None)
    held, paged = greedy(beginnings(), [_N] * 6), greedy(beginnings(), [_N] * 6)
    continue_rows(load_model(tmp_path), held)
    continue_rows(open_paged(tmp_path, OffloadConfig(weights=way), "cpu", None), paged)
    assert paged.added == held.added == [one_by_one(model, row, _N) for row in beginnings()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_foreign_model_grows_by_its_own_generate_as_on_our_past(family: str, tmp_path: Path) -> None:
    place = make_model(tmp_path, family, 60)
    model = load_model(place)
    assert isinstance(model, HFModel)
    ours, theirs = greedy(beginnings(), [_N, 3, _N, 1, _N, 5]), greedy(beginnings(), [_N, 3, _N, 1, _N, 5])
    continue_rows(model, ours)
    continue_by_generate(model, theirs)
    assert theirs.added == ours.added
    plain = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    settings = plain.generation_config = TheirConfig(max_new_tokens=_N, do_sample=False, pad_token_id=0)
    for row, added in zip(beginnings(), theirs.added, strict=True):
        assert plain.generate(torch.tensor([row]), generation_config=settings)[0, len(row) :].tolist()[: len(added)] == added


def test_settings_that_a_foreign_model_came_with_do_not_count(tmp_path: Path) -> None:
    model = load_model(make_model(tmp_path, "llama", 60))
    assert isinstance(model, HFModel)
    before = greedy(beginnings(), [_N] * 6)
    continue_by_generate(model, before)
    own = TheirConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_new_tokens=2, eos_token_id=before.added[0][1])
    model.causal.generation_config = own
    again = greedy(beginnings(), [_N] * 6)
    continue_by_generate(model, again)
    assert again.added == before.added
    assert model.causal.generation_config is own


@pytest.fixture(scope="module", params=["shipped", "foreign"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenCheckpoint:
    """Return the shipped base, or a random foreign model whose texts never end by themselves."""
    place = DEMO / "base" if request.param == "shipped" else make_checkpoint(tmp_path_factory.mktemp("foreign"), "qwen3")
    return open_checkpoint(place, ScorerConfig(precision=Precision.FP32))


def texts(opened: OpenCheckpoint, prompts: Sequence[str], config: GenerationConfig, seed: int = 0) -> list[Generated]:
    rules = TextRules.of(opened.model, opened.tokenizer, config.stop)
    tokens = [rules.encode(prompt) for prompt in prompts]
    return generate(opened.model, rules, tokens, keys_of(tokens, seed), config)


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(max_tokens=12),
        GenerationConfig(max_tokens=12, repetition_penalty=1.3),
        GenerationConfig(max_tokens=12, temperature=1.0),
        GenerationConfig(max_tokens=12, temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.1),
    ],
    ids=["greedy", "greedy, penalty", "drawn", "all rules"],
)
def test_a_prompts_text_does_not_depend_on_the_batch(opened: OpenCheckpoint, config: GenerationConfig) -> None:
    together = texts(opened, _PROMPTS, config, seed=5)
    assert texts(opened, _PROMPTS, replace(config, batch_rows=2), seed=5) == together
    for prompt, text in list(zip(_PROMPTS, together, strict=True))[:3]:
        assert texts(opened, [prompt], config, seed=5) == [text]
    is_drawn = config.temperature is not None
    assert (together[0] != together[3]) is is_drawn  # the same prompt again
    assert (texts(opened, _PROMPTS, config, seed=6) != together) is is_drawn


def test_a_text_ends_before_a_stop_and_streams_what_is_settled(opened: OpenCheckpoint) -> None:
    config = GenerationConfig(max_tokens=12, temperature=1.0)
    whole = next(text for text in texts(opened, _PROMPTS, config) if len(text.text) > 4)
    prompt = _PROMPTS[texts(opened, _PROMPTS, config).index(whole)]
    stop = whole.text[3:5]
    rules = TextRules.of(opened.model, opened.tokenizer, [stop, "never seen"])
    tokens, seen = [rules.encode(prompt)], list[str]()
    [found] = generate(
        opened.model, rules, tokens, keys_of(tokens, 0), replace(config, stop=list(rules.stop)),
        watch=lambda _, added: seen.append(rules.settled(added)),
    )  # fmt: skip
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.ending is Ending.STOP
    assert found.n_tokens <= whole.n_tokens
    assert len(seen) == found.n_tokens
    assert all(found.text.startswith(text) for text in seen)


def test_end_tokens_end_a_text_and_are_no_part_of_it(opened: OpenCheckpoint) -> None:
    config = GenerationConfig(max_tokens=6)
    rules = TextRules.of(opened.model, opened.tokenizer, [])
    assert {opened.tokenizer.eos_id, opened.tokenizer.bos_id} <= rules.ends
    [whole] = texts(opened, _PROMPTS[:1], config)
    tokens = [rules.encode(_PROMPTS[0])]
    grown = list[list[int]]()
    generate(opened.model, rules, tokens, [0], config, watch=lambda _, added: grown.append(list(added)))
    ended = replace(rules, ends=rules.ends | {grown[1][1]})
    [found] = generate(opened.model, ended, tokens, [0], config)
    first = grown[0] if grown[0][0] != grown[1][1] else []
    assert found == Generated(text=opened.tokenizer.decode(first), n_tokens=len(first) + 1, ending=Ending.END)
    assert whole.text.startswith(found.text)


def test_a_text_ends_with_the_context(tmp_path: Path) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path, "llama", max_position_embeddings=24), ScorerConfig(precision=Precision.FP32))
    rules = TextRules.of(opened.model, opened.tokenizer, [])
    rows = [[1] * 20, [1] * 5, [1] * 23]
    found = generate(opened.model, rules, rows, [0, 1, 2], GenerationConfig(max_tokens=19, temperature=1.0))
    assert [text.n_tokens for text in found] == [4, 19, 1]
    assert [text.ending for text in found] == [Ending.CONTEXT, Ending.MAX_TOKENS, Ending.CONTEXT]


def test_end_tokens_that_a_foreign_model_names_count(tmp_path: Path) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path, "llama", eos_token_id=[7, 9]), ScorerConfig(precision=Precision.FP32))
    assert {7, 9} <= TextRules.of(opened.model, opened.tokenizer, []).ends


def test_half_a_character_is_held_back(tmp_path: Path) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path, "llama"), ScorerConfig(precision=Precision.FP32))
    rules = TextRules.of(opened.model, opened.tokenizer, ["ab"])
    cut = opened.tokenizer.encode("𠀀")
    assert len(cut) > 1
    assert rules.settled(opened.tokenizer.encode("a b") + cut[:-1]) == "a b"
    assert rules.settled(opened.tokenizer.encode("b a")) == "b "
    assert rules.text(opened.tokenizer.encode("b a")) == "b a"
