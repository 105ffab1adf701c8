"""Pieces of a training state: waiting for those of other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapt.train.state_pieces import Piece, await_pieces, write_pieces

PIECES = [Piece(which="weights", name="w", start=0, values=torch.ones(3))]


def test_a_file_that_takes_its_final_name_meanwhile_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pieces(tmp_path, 0, PIECES)
    listed = Path.iterdir

    def with_one_that_goes(place: Path) -> Iterator[Path]:
        yield place / ".rank-00001.safetensors"
        write_pieces(tmp_path, 1, PIECES)
        yield from listed(place)

    monkeypatch.setattr(Path, "iterdir", with_one_that_goes)
    await_pieces(tmp_path, 2, lambda: 30.0)


def test_a_rank_that_cannot_write_or_does_not_is_no_endless_wait(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="rank-00000"):
        await_pieces(tmp_path, 1, lambda: 0.1)
    (tmp_path / "rank-00000.safetensors.failed").write_text('[28, "no space"]', encoding="utf-8")
    with pytest.raises(OSError, match="no space"):
        await_pieces(tmp_path, 1, lambda: 30.0)
