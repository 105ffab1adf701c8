"""A directory that several processes of a session share is made by one of them."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.made_once import made_once


def factory_of(worker: Path) -> Any:
    return SimpleNamespace(getbasetemp=lambda: worker)


def as_a_worker(worker: Path) -> None:
    os.environ["PYTEST_XDIST_WORKER"] = worker.name

    def make(place: Path) -> None:
        with (worker.parent / "makers").open("a") as stream:
            stream.write(f"{worker.name}\n")
        time.sleep(0.2)  # long enough for the others to come meanwhile
        (place / "whole").touch()

    assert (made_once(factory_of(worker), "shared", make) / "whole").exists()


def test_several_processes_make_it_once_and_all_find_it_whole(tmp_path: Path) -> None:
    workers = [tmp_path / f"gw{number}" for number in range(3)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=as_a_worker, args=(worker,)) for worker in workers]
    for worker in workers:
        worker.mkdir()
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "makers").read_text().splitlines()) == 1


def test_what_could_not_be_made_is_made_anew_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def fail(place: Path) -> None:
        (place / "half").touch()
        raise AssertionError("planted")

    with pytest.raises(AssertionError, match="planted"):
        made_once(factory_of(tmp_path), "shared", fail)
    place = made_once(factory_of(tmp_path), "shared", lambda place: (place / "whole").touch())
    assert [file.name for file in place.iterdir()] == ["whole"]
    assert made_once(factory_of(tmp_path), "shared", fail) == place
