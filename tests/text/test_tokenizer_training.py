"""Training in a process of its own: the same bits, how far it is, and that nothing outlives the command."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from adapt.core.errors import ConfigError
from adapt.core.progress import HowFar, told_to
from adapt.text import tokenizer_training as module
from adapt.text.tokenizer_training import TrainerRefusal, trained_model
from tests.support.command_line import ROOT

OPTIONS: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 1500,
    "byte_fallback": True,
    "num_threads": 1,
    "normalization_rule_name": "identity",
}
BUSY = """
import random
from adapt.text.tokenizer_training import trained_model
draw = random.Random(1)
lines = ["".join(draw.choices("abcdefghijklmnopqrst", k=2000)) for _ in range(1500)]
trained_model(lines, {"model_type": "bpe", "vocab_size": 20000})
"""


def sentences() -> list[str]:
    """Return text of some thousand words: syllables that recur, a line with a carriage return, and Chinese."""
    draw = random.Random(2)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(3000)]
    return [" ".join(draw.choices(words, k=12)) for _ in range(1500)] + ["一行\r有回车", "这家店的面条很好吃。"] * 5


def test_the_model_is_the_one_that_is_trained_in_this_process() -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences()), model_writer=written, minloglevel=2, **OPTIONS)
    given = sentences()
    assert trained_model(given, OPTIONS) == written.getvalue()
    assert given == [], "sentences are let go of as they are sent"


def test_hundreds_of_merged_pieces_are_told_with_the_time_left() -> None:
    told: list[HowFar] = []
    with told_to(told.append):
        model = trained_model(sentences(), OPTIONS)
    n_merges = sum(1 for line in sentencepiece_pieces(model) if len(line) > 1)
    assert [one.done for one in told] == list(range(1, told[0].total + 1))
    assert {(one.what, one.unit) for one in told} == {("merging pieces", "hundred")}
    assert told[0].total == n_merges // 100 > 8
    assert told[-1].left_s == pytest.approx(0.0)


def sentencepiece_pieces(model: bytes) -> Iterator[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return (
        processor.id_to_piece(n)
        for n in range(processor.vocab_size())
        if not (processor.is_byte(n) or processor.is_control(n) or processor.is_unknown(n))
    )


def test_the_log_of_an_older_trainer_is_read_too() -> None:
    log = [f"bpe_model_trainer.cc(268) LOG(INFO) Added: freq=9 size={n} all=7 active=5 piece=的" for n in range(0, 500, 20)]
    assert list(module._merged(log)) == [1, 2, 3, 4]


def test_what_cannot_be_trained_is_said_by_the_trainer() -> None:
    with pytest.raises(TrainerRefusal, match="[Vv]ocabulary size"):
        trained_model(sentences(), {**OPTIONS, "vocab_size": 900_000})


def test_a_trainer_that_was_killed_or_broke_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHILD", tmp_path / "child.py")
    (tmp_path / "child.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"killed \(signal 9\).*tokenizer\.memory_gb"):
        trained_model(sentences(), OPTIONS)
    (tmp_path / "child.py").write_text("raise ImportError('no module here')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="no module here"):
        trained_model(sentences(), OPTIONS)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_trainer_outlives_a_command_that_is_stopped(how: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    starter = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells ignore it in the background
    process = subprocess.Popen([sys.executable, "-c", starter + BUSY], env=environment, stderr=subprocess.DEVNULL)
    trainer = wait_for_trainer(process.pid)
    process.send_signal(how)
    process.wait(timeout=30)
    deadline = time.monotonic() + 10
    while is_running(trainer):
        assert time.monotonic() < deadline, "the trainer is still at work"
        time.sleep(0.02)


def wait_for_trainer(parent: int) -> int:
    """Return the trainer's process once all sentences were sent, by a thread that then ends: it is in its C++ code then."""
    deadline, has_sent = time.monotonic() + 60, False
    while time.monotonic() < deadline:
        n_threads = len(list(Path(f"/proc/{parent}/task").iterdir()))
        has_sent |= n_threads == 2
        if has_sent and n_threads == 1:
            return int(Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()[0])
        time.sleep(0.005)
    raise AssertionError("no trainer was started")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
