"""Trains a SentencePiece model in a process of its own: sentences on standard input, the trainer's log on standard error.

Arguments: the trainer's options as JSON, a directory, the number of sentences, and the process that waits. The model is written to
`model` in the directory, or to `refused` why there is none. Only the standard library and SentencePiece are imported, so that
the process is there at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

_PR_SET_PDEATHSIG = 1


def main(options: str, directory: str, n_sentences: str, parent: str) -> int:
    """Train; return 0, or 1 where the trainer refuses the text or the options."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer would not hear it; the process that waits does, and kills this one
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            os._exit(1)
    place = Path(directory)
    try:
        with (place / "model").open("wb") as model:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_sentences(int(n_sentences)), model_writer=model, **json.loads(options)
            )
    except RuntimeError as error:
        (place / "refused").write_text(str(error), encoding="utf-8")
        return 1
    return 0


def _sentences(count: int) -> Iterator[str]:
    for _ in range(count):
        line = sys.stdin.buffer.readline()
        if not line:  # who sent them is gone
            os._exit(1)
        yield line[:-1].decode()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
