"""AdamW whose moments, and fp32 masters where there are some, lie in a scratch file; memory holds three blocks of them.

A step walks over the file: one thread reads the next block while this one is updated by torch's own fused kernel, another writes
the block before. A block begins at a multiple of a cache line in every tensor, where the kernel's threads cut too, so that each
element sees the operations that it would see in memory: the same bits.

In bf16 a moment is rounded stochastically: to one of its two neighbours, to the nearer one more often, so that its mean is kept
where changes are smaller than half a step of the format. The random bits follow from (seed, update, block).
Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3, arXiv:1502.02551.

Legend: N elements of the block, parameters one after another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from adapt.checkpoint.offload import MomentFormat, OffloadConfig, OptimizerIn, TrainedWeightsIn
from adapt.checkpoint.shard_bytes import view_of
from adapt.checkpoint.shard_format import pages_up
from adapt.core.runtime import seed_for
from adapt.train.file_tensors import LEAST_BYTES, FreshTensors, TensorFiles
from adapt.train.idle_experts import Runs, busy_parts, idle_of, runs_of_stack
from adapt.train.scratch_file import ScratchFile

N_ROOMS = 3  # read, updated, written
_LINE = 16  # fp32 elements of a cache line
_LEAST_BLOCK, _MOST_BLOCK = 1 << 12, 1 << 20
_BLOCKS = 32  # of a large optimizer, so that what memory holds is a small part


@dataclass(frozen=True, kw_only=True)
class Paging:
    """Where a rank's scratch files are, its moments' format, and the seed of their rounding; the last two are for tests.

    Tensors of less than `least_bytes` stay in memory, and so do weights, unless `has_weights`.
    """

    place: Path
    moments: MomentFormat = MomentFormat.FP32
    has_weights: bool = False
    seed: int = 0
    block: int | None = None
    least_bytes: int = LEAST_BYTES

    @classmethod
    def of(cls, offload: OffloadConfig, place: Path, seed: int) -> Paging | None:
        """Return what the settings ask for; None where everything is in memory."""
        if offload.optimizer is not OptimizerIn.PAGED:
            return None
        return cls(place=place, moments=offload.moments, has_weights=offload.trained_weights is TrainedWeightsIn.MAPPED, seed=seed)


def weights_in_place(paging: Paging | None, *, only_births: bool = False) -> AbstractContextManager[Any]:
    """Return a block in which weights are made where they are kept while training: in files, if `paging` says so.

    Their tensors are views of the files, which the update writes. With `only_births`, only meta tensors that get their bytes are
    weights; all other tensors are made as ever.

    Raises:
        ConfigError: in the block, the disk has too little space.
    """
    if paging is None or not paging.has_weights:
        return nullcontext()
    files = TensorFiles(Path(f"{paging.place}-weights"), "weights", "offload.trained_weights=memory")
    return FreshTensors(files, paging.least_bytes, only_births=only_births)


def block_elements(n_elements: int) -> int:
    """Return how many elements of an optimizer's are in memory at a time, in each of `N_ROOMS` rooms."""
    return min(max(-(-n_elements // _BLOCKS // _LINE) * _LINE, _LEAST_BLOCK), _MOST_BLOCK)


@dataclass(frozen=True, kw_only=True)
class _Region:
    """A run of the file with one number for each element."""

    offset: int
    dtype: torch.dtype

    def at(self, element: int) -> int:
        return self.offset + element * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A parameter's elements [first, last) in a block, from the block's element `at` on."""

    parameter: Tensor
    first: int
    last: int
    at: int


@dataclass(kw_only=True)
class _Block:
    """Neighbouring elements of every region, from `start` on."""

    index: int
    start: int
    size: int = 0
    pieces: list[_Piece] = field(default_factory=list)


class PagedAdamW(torch.optim.AdamW):
    """Decoupled AdamW with its state on a disk; CPU parameters only.

    Once `lay_out` was called, the state's tensors are views of the file: they can be read and set by anyone between steps. Of
    parameters whose ids are in `stacks`, experts without a gradient are left as they are; an engine that flattens parameters says
    in `expert_runs` where those experts lie in them.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        paging: Paging,
        stacks: Collection[int] = (),
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self._paging = paging
        self.stacks = stacks
        self.expert_runs: dict[Tensor, Runs] = {
            stack: runs_of_stack(stack) for group in self.param_groups for stack in group["params"] if id(stack) in stacks
        }
        self._file: ScratchFile | None = None
        self._regions: list[_Region] = []
        self._starts: dict[Tensor, int] = {}
        self._blocks: dict[int, list[_Block]] = {}
        self._rooms: list[Tensor] = []
        self._reader, self._writer = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("moments-in", "moments-out"))

    def lay_out(self, *, pages_weights: bool) -> None:
        """Allocate the file for all parameters; `pages_weights` moves the parameters themselves there too.

        Raises:
            ConfigError: the disk has too little space.
        """
        total = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.device.type == "cpu" and parameter.is_contiguous() and parameter.dtype is torch.float32
                self._starts[parameter] = total
                total += -(-parameter.numel() // _LINE) * _LINE
        block = self._paging.block or block_elements(total)
        n_blocks = 0
        for group in self.param_groups:
            self._blocks[id(group)] = self._cut(group["params"], block, n_blocks)
            n_blocks += len(self._blocks[id(group)])
        moment = self._paging.moments.dtype
        dtypes = [moment, moment, *([torch.float32] if pages_weights else [])]
        end = 0
        for dtype in dtypes:
            self._regions.append(_Region(offset=end, dtype=dtype))
            end = pages_up(end + total * dtype.itemsize)
        wish = "the optimizer's moments" + (" and master weights" if pages_weights else "")
        self._file = ScratchFile(self._paging.place, end, wish)
        self._rooms = [torch.empty(block * sum(dtype.itemsize for dtype in dtypes), dtype=torch.uint8) for _ in range(N_ROOMS)]
        if pages_weights:
            for parameter in self._starts:
                moved = self._mapped(2, parameter)
                moved.copy_(parameter.detach())
                parameter.data = moved

    def moments_at(self, parameter: Tensor, steps_done: int) -> dict[str, Tensor]:
        """Return a parameter's state as after `steps_done` updates; its moments are what lies in the file."""
        step = torch.full((), float(steps_done), dtype=torch.float32)
        return {"step": step, "exp_avg": self._mapped(0, parameter), "exp_avg_sq": self._mapped(1, parameter)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's overloads return a closure's loss; there is none
        """Update every parameter that has a gradient.

        Raises:
            TrainingError: the disk fails.
        """
        for group in self.param_groups:
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            idle = {id(p): idle_of(p.grad, self.expert_runs[p]) for p in updated if p in self.expert_runs}
            busy = (_busy(block, idle) for block in self._blocks[id(group)])
            self._walk([block for block in busy if block.pieces], group)
            for parameter in updated:
                self.state[parameter]["step"] += 1

    def close(self) -> None:
        """Give the threads and the file back."""
        for pool in (self._reader, self._writer):
            pool.shutdown()
        if self._file is not None:
            self._file.close()

    def _cut(self, parameters: Sequence[Tensor], size: int, first_index: int) -> list[_Block]:
        """Cut a group's elements into blocks of at most `size`, a multiple of a cache line."""
        assert size % _LINE == 0
        blocks: list[_Block] = []
        for parameter in parameters:
            start, done = self._starts[parameter], 0
            while done < parameter.numel():
                if not blocks or blocks[-1].size >= size:
                    blocks.append(_Block(index=first_index + len(blocks), start=start + done))
                block = blocks[-1]
                last = min(parameter.numel(), done + size - block.size)
                block.pieces.append(_Piece(parameter=parameter, first=done, last=last, at=block.size))
                block.size += -(-(last - done) // _LINE) * _LINE
                done = last
        return blocks

    def _walk(self, blocks: Sequence[_Block], group: dict[str, Any]) -> None:
        writing: list[Future[None]] = []
        reading = [self._reader.submit(self._read, block, blocks, n) for n, block in enumerate(blocks[:1])]
        try:
            for n, block in enumerate(blocks):
                reading[n].result()
                if n + 1 < len(blocks):
                    if n + 1 >= N_ROOMS:
                        writing[n + 1 - N_ROOMS].result()
                    reading.append(self._reader.submit(self._read, blocks[n + 1], blocks, n + 1))
                self._update(block, self._views(block, n), group)
                writing.append(self._writer.submit(self._write, block, n))
            for future in writing:
                future.result()
        finally:
            for future in (*reading, *writing):  # no thread may go on with rooms that others take
                future.exception()

    def _read(self, block: _Block, blocks: Sequence[_Block], n: int) -> None:
        file = self._opened()
        for region, view in zip(self._regions, self._views(block, n), strict=True):
            file.read(region.at(block.start), view_of(view))
            if n + 1 < len(blocks):
                following = blocks[n + 1]
                file.will_read(region.at(following.start), following.size * region.dtype.itemsize)

    def _write(self, block: _Block, n: int) -> None:
        for region, view in zip(self._regions, self._views(block, n), strict=True):
            self._opened().write(region.at(block.start), view_of(view))

    def _update(self, block: _Block, views: Sequence[Tensor], group: dict[str, Any]) -> None:
        moments = [view if view.dtype is torch.float32 else view.float() for view in views[:2]]
        given = [(piece, piece.parameter.grad) for piece in block.pieces if piece.parameter.grad is not None]
        pieces = [piece for piece, _ in given]
        weights = [
            views[2][piece.at : piece.at + piece.last - piece.first]
            if len(views) > 2
            else piece.parameter.detach().view(-1)[piece.first : piece.last]
            for piece in pieces
        ]
        first, second = ([moment[piece.at : piece.at + piece.last - piece.first] for piece in pieces] for moment in moments)
        adamw(
            weights,
            [grad.reshape(-1)[piece.first : piece.last] for piece, grad in given],
            first,
            second,
            [],
            [self.state[piece.parameter]["step"].clone() for piece in pieces],  # the kernel's caller counts it up
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
        if self._paging.moments is MomentFormat.BF16:
            update = int(self.state[pieces[0].parameter]["step"])
            generator = torch.Generator().manual_seed(seed_for("moments", self._paging.seed, update, block.index))
            for view, moment in zip(views, moments, strict=False):
                view.copy_(stochastically_rounded(moment, generator))

    def _views(self, block: _Block, n: int) -> list[Tensor]:
        """Return a block's part of every region in its room."""
        return list(self._parts(self._rooms[n % N_ROOMS], block.size))

    def _parts(self, room: Tensor, size: int) -> Iterator[Tensor]:
        at = 0
        for region in self._regions:
            n_bytes = size * region.dtype.itemsize
            yield room[at : at + n_bytes].view(region.dtype)
            at += n_bytes

    def _mapped(self, region: int, parameter: Tensor) -> Tensor:
        place = self._regions[region]
        flat = self._opened().tensor(place.at(self._starts[parameter]), parameter.numel(), place.dtype)
        return flat.view(parameter.shape)

    def _opened(self) -> ScratchFile:
        assert self._file is not None, "lay_out comes first"
        return self._file


def _busy(block: _Block, idle: Mapping[int, Runs]) -> _Block:
    """Return a block with those of its pieces that have a gradient, without idle experts' elements."""
    pieces = [
        replace(piece, first=first, last=last, at=piece.at + first - piece.first)
        for piece in block.pieces
        if piece.parameter.grad is not None
        for first, last in busy_parts(piece.first, piece.last, idle.get(id(piece.parameter), ()))
    ]
    return replace(block, pieces=pieces)


def stochastically_rounded(values_N: Tensor, generator: torch.Generator) -> Tensor:
    """Return fp32 values in bf16, each rounded to a neighbour with a chance that grows as it is nearer; exact ones stay."""
    noise = torch.empty(-(-values_N.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
    noise_N = noise.view(torch.int16)[: values_N.numel()].int().bitwise_and_(0xFFFF)
    bits_N = noise_N.add_(values_N.view(torch.int32)).bitwise_and_(-0x10000)
    return bits_N.view(torch.float32).bfloat16()
