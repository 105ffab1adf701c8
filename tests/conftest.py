"""Shared fixtures: a tiny tokenizer and tiny models, made once per session from the shipped demo text."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from adapt.model.gpt import GPT, materialize
from adapt.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from tests.support.loggers import kept_loggers
from tests.support.tiny_models import DEMO, VOCAB, tiny_config


def pytest_collection_finish() -> None:
    """Keep modules and collected tests out of the garbage collector's rounds, which would look at all of them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    with kept_loggers():
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = (DEMO / "corpus" / "general.txt").read_text(encoding="utf-8").splitlines()
    return train_tokenizer(lines, TokenizerConfig(vocab_size=VOCAB), "demo corpus")


@pytest.fixture(scope="session")
def sparse_model() -> GPT:
    return materialize(GPT(tiny_config()), seed=1).eval()


@pytest.fixture(scope="session")
def dense_model() -> GPT:
    return materialize(GPT(tiny_config(experts=[0])), seed=1).eval()
