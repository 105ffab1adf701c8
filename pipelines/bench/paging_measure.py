"""Measuring what `bench paging` shows: each way in a process of its own, its private memory sampled while it runs."""

from __future__ import annotations

import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from adapt.checkpoint.offload import OffloadConfig, WeightsIn
from adapt.checkpoint.paged_weights import PagedWeights
from adapt.checkpoint.random_weights import random_weights
from adapt.checkpoint.store import open_store
from adapt.checkpoint.store_writer import write_tensors
from adapt.checkpoint.streaming import stream
from adapt.checkpoint.tensors_in_parts import AnyTensor, PartedTensor
from adapt.checkpoint.weights import open_paged, rounded, save_model
from adapt.core.precision import Precision
from adapt.model.config import GPTConfig
from adapt.model.inputs import ModelInputs
from pipelines.bench.own_memory import memory_mib
from pipelines.ranks.fresh_processes import GIVE_BACK, as_a_rank, in_child

_STEP_BYTES = 16 << 20
_EXPERT = (8192, 2048)  # of 16b_pyramid, in bf16: 33.6 MB
_EXPERTS = 32  # of a layer
_SAMPLE_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of a way, how far private memory rose meanwhile, and what reading took where it is known."""

    seconds: float
    private_mib: float
    read_s: float = 0.0
    compute_s: float = 0.0
    read_bytes: int = 0


def measure_write(place: Path, n_bytes: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Time the store's writer, sums included, against the raw write of as many bytes, in turn."""
    found: dict[str, list[Measured]] = {"raw": [], "store": []}
    for _ in range(rounds):
        found["raw"].append(in_child(GIVE_BACK, threads, raw_write, place, n_bytes))
        found["store"].append(in_child(GIVE_BACK, threads, store_write, place, n_bytes))
    return [_row("write", "store", n_bytes, found["store"], found["raw"], 2.0)]


def measure_read(place: Path, n_bytes: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Time loading a cold checkpoint and touching all of it against the raw read of its files, in turn."""
    write_tensors(place, expert_tensors(n_bytes))
    found: dict[str, list[Measured]] = {"raw": [], "mmap": []}
    for _ in range(rounds):
        found["raw"].append(in_child(GIVE_BACK, threads, raw_read, place))
        found["mmap"].append(in_child(GIVE_BACK, threads, touch_all, place))
    row = _row("read", "mmap", n_bytes, found["mmap"], found["raw"], 1.2)
    _empty(place)
    return [row]


def measure_ranks(place: Path, n_bytes: int, ranks: int, threads: int) -> list[dict[str, Any]]:
    """Load a checkpoint on one process and on several at once; what the page cache grew by says how many copies there are."""
    write_tensors(place, expert_tensors(n_bytes))
    rows = []
    for count in sorted({1, ranks}):
        drop(place)
        before = _cached_bytes()
        with ThreadPoolExecutor(count) as pool:
            jobs = [pool.submit(in_child, GIVE_BACK, threads, touch_all, place, False) for _ in range(count)]
            found = [job.result() for job in jobs]
        grown = _cached_bytes() - before
        row = _row("ranks", f"mmap x {count}", n_bytes, found, None, None)
        rows.append({**row, "cached/size": grown / n_bytes})
    _empty(place)
    return rows


def measure_score(
    place: Path,
    model: GPTConfig,
    checkpoint: Path | None,
    shape: tuple[int, int],
    ways: Sequence[str],
    ahead_mb: int,
    *,
    rounds: int,
    threads: int,
) -> list[dict[str, Any]]:
    """Take rows of random tokens through a paged model; its time against the larger of its I/O and its compute."""
    if checkpoint is None:
        checkpoint = place / "model"
        checkpoint.mkdir()
        save_model(checkpoint, model, rounded(random_weights(model, seed=0), Precision.BF16), None)
    rows = []
    for way in ways:
        found = []
        for _ in range(rounds):
            drop(checkpoint)
            found.append(in_child(as_a_rank(threads), threads, score, checkpoint, way, shape, ahead_mb))
        n_bytes = int(statistics.median(one.read_bytes for one in found))
        row = _row(f"score {shape[0]} x {shape[1]}", way, n_bytes, found, None, 1.3)
        larger = statistics.median(max(one.read_s, one.compute_s) for one in found)
        row["ratio"] = row["s"] / larger
        row["I/O s"] = statistics.median(one.read_s for one in found)
        row["compute s"] = statistics.median(one.compute_s for one in found)
        rows.append(row)
    return rows


def raw_write(place: Path, n_bytes: int) -> Measured:
    """Write a file past the page cache by one thread, and remove it."""
    block = mmap.mmap(-1, _STEP_BYTES)
    block[:] = os.urandom(_STEP_BYTES)
    path = place / "raw"

    def act() -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o666)
        for _ in range(n_bytes // _STEP_BYTES):
            os.write(handle, block)
        os.fdatasync(handle)
        os.close(handle)

    measured = measured_while(act)
    path.unlink()
    return measured


def store_write(place: Path, n_bytes: int) -> Measured:
    """Write a checkpoint of so many bytes, and remove it."""
    target = place / "written"
    target.mkdir()
    tensors = list(expert_tensors(n_bytes))
    measured = measured_while(lambda: write_tensors(target, tensors))
    _empty(target)
    target.rmdir()
    return measured


def raw_read(place: Path) -> Measured:
    """Read a checkpoint's files past the page cache by one thread."""
    block = mmap.mmap(-1, _STEP_BYTES)

    def act() -> None:
        for path in sorted(place.glob("*.safetensors")):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
            for at in range(0, path.stat().st_size, _STEP_BYTES):
                os.preadv(handle, [block], at)
            os.close(handle)

    return measured_while(act)


def touch_all(place: Path, is_cold: bool = True) -> Measured:
    """Load a checkpoint through the mapped files and look at every byte of it."""
    if is_cold:
        drop(place)

    def act() -> None:
        for piece in stream(open_store(place)):
            piece.content.view(torch.int16).max()

    return measured_while(act)


@torch.inference_mode()
def score(place: Path, way: str, shape: tuple[int, int], ahead_mb: int) -> Measured:
    """Take rows of random tokens once through a model whose weights are paged; memory counts from before it is opened."""
    with PrivateMemory() as memory:
        model = open_paged(place, OffloadConfig(weights=WeightsIn(way), ahead_mb=ahead_mb), "cpu", torch.bfloat16)
        ids_BT = torch.randint(0, model.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        inputs = ModelInputs(
            ids_BT=ids_BT,
            positions_BT=torch.arange(shape[1]).repeat(shape[0], 1),
            documents_BT=torch.ones_like(ids_BT),
            is_packed=False,
        )
        started = time.perf_counter()
        model(inputs)
        seconds = time.perf_counter() - started
    assert isinstance(model.provider, PagedWeights)
    clock = model.provider.clock
    return Measured(
        seconds=seconds,
        private_mib=memory.grown_mib,
        read_s=clock.read_s,
        compute_s=seconds - clock.waited_s,
        read_bytes=clock.read_bytes,
    )


class PrivateMemory:
    """The peak of private memory inside a `with` block, above what stood there before, by looking at it often."""

    def __enter__(self) -> PrivateMemory:
        self._before = self._peak = memory_mib("RssAnon")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def grown_mib(self) -> float:
        return self._peak - self._before

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._peak = max(self._peak, memory_mib("RssAnon"))


def measured_while(act: Callable[[], object]) -> Measured:
    """Time a call and watch private memory."""
    with PrivateMemory() as memory:
        started = time.perf_counter()
        act()
        seconds = time.perf_counter() - started
    return Measured(seconds=seconds, private_mib=memory.grown_mib)


def expert_tensors(n_bytes: int) -> Iterator[tuple[str, AnyTensor]]:
    """Yield stacked experts of the article's size, so many bytes in all, with the same random weights in each."""
    torch.manual_seed(0)
    part = torch.randn(_EXPERT).to(torch.bfloat16)
    left, layer = n_bytes // (part.numel() * part.element_size()), 0
    while left:
        count = min(left, _EXPERTS)
        parts = partial(repeat, part, count)
        yield f"blocks.{layer}.mlp.experts.up_weight", PartedTensor(shape=(count, *_EXPERT), dtype=part.dtype, parts=parts)
        left -= count
        layer += 1


def drop(place: Path) -> None:
    """Take a directory's files out of the page cache."""
    for path in place.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.fdatasync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _row(
    what: str, way: str, n_bytes: int, found: Sequence[Measured], raw: Sequence[Measured] | None, target: float | None
) -> dict[str, Any]:
    seconds = statistics.median(one.seconds for one in found)
    ratio = None
    if raw is not None:
        ratio = statistics.median(one.seconds / other.seconds for one, other in zip(found, raw, strict=True))
    return {
        "what": what,
        "way": way,
        "GB": n_bytes / 1e9,
        "runs": len(found),
        "s": seconds,
        "GB/s": n_bytes / 1e9 / seconds,
        "raw s": None if raw is None else statistics.median(one.seconds for one in raw),
        "best raw s": None if raw is None else min(one.seconds for one in raw),
        "I/O s": None,
        "compute s": None,
        "ratio": ratio,
        "target": target,
        "private MiB": max(one.private_mib for one in found),
        "cached/size": None,
    }


def _cached_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Cached:")) * 1024


def _empty(place: Path) -> None:
    for path in place.iterdir():
        path.unlink()
