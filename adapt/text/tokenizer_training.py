"""Training of a SentencePiece model, watched from outside: the trainer is C++, and says on standard error only how far it is.

So it runs in a process of its own (`sentencepiece_child.py`), whose log tells the pieces that are merged: there is a time left, the
command hears Ctrl-C at once, and a machine out of memory ends that process and not the command. It dies with the command. The
model is the same bits as one that is trained in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from adapt.core.errors import ConfigError
from adapt.core.progress import progress

_CHILD = Path(__file__).with_name("sentencepiece_child.py")
# The trainer's log, of SentencePiece 0.2.0 and of later ones.
_FIXED_PIECE, _ALPHABET = re.compile(r"Adding meta_piece: "), re.compile(r"Alphabet size=(\d+)")
_MERGED = re.compile(r"(?:Merged|Added): freq=\d+ (?:merges|size)=(\d+)")
_TOGETHER = 100  # pieces of an item of the progress
_COST_EXPONENT = 0.35  # merging the first n pieces takes n^0.35 as long as merging the first: frequent pairs stand in many places
_KEPT_LINES = 5


class TrainerRefusal(Exception):
    """What the trainer says about text or options that it cannot train on."""


def trained_model(sentences: list[str], options: Mapping[str, Any]) -> bytes:
    """Return the bytes of the model that SentencePiece trains on sentences without line breaks; the list is emptied on the way.

    Raises:
        TrainerRefusal: the trainer cannot make a model of this.
        ConfigError: its process was killed, as by a machine out of memory.
    """
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as place:
        line = [sys.executable, "-P", str(_CHILD), json.dumps(options), place, str(len(sentences)), str(os.getpid())]
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stdin is not None and process.stderr is not None
        sender = threading.Thread(target=_send, args=(sentences, process.stdin), daemon=True)
        said = deque[str](maxlen=_KEPT_LINES)
        try:
            sender.start()
            _watch(_lines(process.stderr, said), int(options["vocab_size"]))
            process.wait()
        finally:
            process.kill()
            process.wait()
            sender.join()
            process.stderr.close()
        return _made(Path(place), process.returncode, said)


def _send(sentences: list[str], stream: IO[bytes]) -> None:
    """Send sentences, and let go of each: the trainer has its own copy."""
    sentences.reverse()
    with contextlib.suppress(BrokenPipeError), stream:
        while sentences:
            stream.write(sentences.pop().encode() + b"\n")


def _lines(stream: IO[bytes], said: deque[str]) -> Iterator[str]:
    for line in stream:
        said.append(line.decode(errors="replace").strip())
        yield said[-1]


def _watch(log: Iterator[str], vocab_size: int) -> None:
    """Follow the trainer's log to its end, and show how many pieces are merged."""
    n_pieces = vocab_size
    for line in log:
        n_pieces -= _FIXED_PIECE.search(line) is not None
        if alphabet := _ALPHABET.search(line):
            n_pieces -= int(alphabet.group(1))
            break
    total = max(n_pieces // _TOGETHER, 1)
    for _ in progress(_merged(log), "merging pieces", total=total, unit="hundred", cost=_cost):
        pass


def _merged(log: Iterable[str]) -> Iterator[int]:
    """Yield 1, 2, 3, ... as so many hundreds of pieces are merged."""
    shown = 0
    for line in log:
        if found := _MERGED.search(line):
            while shown < int(found.group(1)) // _TOGETHER:
                shown += 1
                yield shown


def _cost(items: int) -> float:
    return float(items**_COST_EXPONENT)


def _made(place: Path, code: int, said: Iterable[str]) -> bytes:
    if code == 0:
        return (place / "model").read_bytes()
    if (place / "refused").is_file():
        raise TrainerRefusal((place / "refused").read_text(encoding="utf-8"))
    if code < 0:
        raise ConfigError(
            f"tokenizer: the process that trains it was killed (signal {-code}), as by a machine out of memory; give a "
            "tokenizer.memory_gb, or lower tokenizer.max_sentences"
        )
    raise RuntimeError("the process that trains the tokenizer ended early: " + " / ".join(said))
