"""What a training step adds to the memory of a rank at each of its moments, and the peak that this makes.

Legend: N trained parameters of a rank, W ranks that share the optimizer, B parameters of a bucket.

Forward leaves activations; the loss adds logits and their gradient; backward lets go of activations while gradients grow, first in
a bucket, then in the partition that a rank updates; the update copies that partition into one tensor. These come one after the
other, so the peak is the largest moment and not the sum of all kinds.

On a CPU two kinds of blocks have to be told apart. The allocator of a rank keeps what is freed (page faults would cost more), so
blocks of its heap count with their own peak at any moment. Given back at once are logits of `LARGE_BLOCK` bytes and more, any block
of `GIVEN_BACK` bytes, and while the engine is made those of `GIVEN_BACK_ONCE` (`adapt.core.allocator`): of them only those of the
moment count. So are large buckets and flat gradients counted, which come one after the other, each in the place of the one before;
where smaller blocks settle in it meanwhile, the heap is larger. Updated weights are gathered by a thread of gloo, which does not
use that heap.

Sources: the order of events is that of DeepSpeed 0.19 (`runtime/zero/stage_1_and_2.py`: setup_buckets, average_tensor,
copy_grads_in_partition, get_flat_partition, step) and was seen in traces of the allocator. Knuth 1997, The Art of Computer
Programming 1, section 2.5 (holes between blocks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapt.core.limits import GIVEN_BACK, GIVEN_BACK_ONCE, LARGE_BLOCK
from adapt.train.engine_config import EngineConfig, GradientCommunication

# Of a rank on a CPU before it has a model: the interpreter, torch, DeepSpeed and their libraries' own data (torch 2.13).
PROCESS_BYTES = 2.75e8
FAMILY_BYTES = 8e7  # more with a Hugging Face model: transformers and the family's code
# The update flattens a partition's gradients where they are not in one tensor already: in fp32, whose gradients DeepSpeed keeps in
# the model's own format.
UPDATE_COPIES_GRADIENTS = True
# Of what passes in the heap on a CPU, the holes between them that the next step's blocks do not fit, from the second step on.
# It was 0.32 of an own dense model and 0.37 with LoRA; Knuth's fifty-percent rule expects one hole for two blocks.
_GAPS = 0.35
_WHOLE_ELEMENTS = 500_000_000  # that DeepSpeed sums at once where no stage cuts gradients


@dataclass(frozen=True, kw_only=True)
class Passing:
    """Bytes that forward and backward of a micro-batch take: what is kept for backward (`kept`, of it `mapped` in blocks that are
    given back), one chunk of logits, what the fullest layer adds in its backward pass (in blocks of up to `layer_block`), and the
    gradient of the table that makes logits.

    `is_chunked`: logits are made a chunk at a time, twice, and none is kept. The table's gradient is 0 where it is not trained.
    Where frozen weights lie in files in another format, `in_use` are the blocks of a converted layer, `table_in_use` that of the
    converted table.
    """

    kept: float
    logits: float
    is_chunked: bool
    layer: float
    layer_block: float
    table: float
    mapped: float = 0.0
    in_use: Sequence[float] = ()
    table_in_use: float = 0.0

    @property
    def activations(self) -> float:
        """Return what is there when forward ends."""
        return self.kept + (0.0 if self.is_chunked else self.logits)

    @property
    def backward(self) -> float:
        """Return what backward adds at its peak."""
        return max(self.layer + self.table, 2 * self.logits + self.table if self.is_chunked else self.logits)

    def times(self, share: float) -> Passing:
        """Return what this share of the micro-batch's rows takes."""
        return Passing(
            kept=self.kept * share,
            logits=self.logits * share,
            is_chunked=self.is_chunked,
            layer=self.layer * share,
            layer_block=self.layer_block * share,
            table=self.table,
            mapped=self.mapped * share,
            in_use=self.in_use,
            table_in_use=self.table_in_use,
        )


@dataclass(frozen=True, kw_only=True)
class TrainedTensors:
    """What an optimizer trains: the numbers of elements of the tensors that a rank holds, and of all tensors together.

    `is_mapped`: the weights come as views of files. `apart`: of the elements, those that ranks share in a group of their own
    (experts under expert parallelism); the others are a group.
    """

    sizes: Sequence[int]
    total: int
    is_mapped: bool = False
    apart: int = 0

    @property
    def elements(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True, kw_only=True)
class InFiles:
    """Where gradients are in files: the bytes of those in memory that autograd hands over, and whether weights are in files too."""

    handed: float
    weights: bool


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of a rank: by kind, each at its largest; by moment of a step, of all kinds that are there; and of its scratch file.

    `host`: those in the machine's memory beside a GPU's, which the others are of then.
    """

    memory: Mapping[str, float]
    moments: Mapping[str, float]
    scratch: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """Return the peak."""
        return max(self.moments.values())

    @property
    def fullest(self) -> str:
        """Return the moment of the peak."""
        return max(self.moments, key=lambda name: self.moments[name])


def combined(
    memory: Mapping[str, float],
    trained: TrainedTensors,
    passing: Passing | None,
    engine: EngineConfig,
    *,
    on_cpu: bool,
    batch_rows: int | None,
    scratch: float,
    in_files: InFiles | None = None,
    on_host: bool = False,
    process: float = PROCESS_BYTES,
) -> MemoryPlan:
    """Put together what lasts and what passes; `batch_rows` make a step over all ranks (absent: a micro-batch on each).

    `on_host`: masters and moments are in the host's memory, which is the rank's own on a CPU. `process` counts on a CPU only.
    """
    accumulates = batch_rows is not None and batch_rows > engine.micro_batch * engine.world_size
    moments = step_moments(trained, passing, engine, accumulates=accumulates, opens_with_copies=on_cpu, in_files=in_files)
    by_kind, host = dict(memory), 0.0
    if on_host and not on_cpu:
        host = by_kind.pop("master") + by_kind.pop("moments") + _updated_on_host(trained, engine)
    if passing is not None:
        by_kind |= {"activations": passing.activations, "backward": passing.backward}
    if on_cpu:
        by_kind["process"] = process
    lasting = sum(by_kind.get(kind, 0.0) for kind in ("weights", "master", "moments", "process"))
    return MemoryPlan(
        memory=by_kind,
        moments={name: lasting + n_bytes for name, n_bytes in fullest(moments, on_cpu).items()},
        scratch=scratch,
        host=host,
    )


Piece = tuple[float, float]  # bytes, and those of each of its blocks if they are given back, 0 in the heap
OPENING = "opening"
Moments = dict[str, list[Piece]]


def step_moments(
    trained: TrainedTensors,
    passing: Passing | None,
    engine: EngineConfig,
    *,
    accumulates: bool,
    opens_with_copies: bool,
    in_files: InFiles | None = None,
) -> Moments:
    """Return what each moment of a step adds to what lasts; `accumulates` says that several micro-batches make a step.

    `opens_with_copies`: the engine is made from weights in this memory, and in bf16 and fp16 from their exact copies too. With
    `in_files` gradients pass through memory as autograd hands them over, and weights may be born in their files.
    """
    least = GIVEN_BACK if in_files is None else GIVEN_BACK_ONCE
    handed: list[Piece] = []
    if in_files is not None:
        handed.append((in_files.handed, LARGE_BLOCK if in_files.handed >= GIVEN_BACK_ONCE else 0.0))
    moments: Moments = {
        "exchange": _exchange(trained, engine, accumulates) if in_files is None else handed,
        "update": _update(trained, engine) if in_files is None else [],
    }
    if opens_with_copies:
        moments[OPENING] = _opening(trained, engine, in_files)
        moments["gather"] = [(_gathered(trained, engine), GIVEN_BACK)]
    if passing is not None:
        before = _earlier(trained, engine) if accumulates and in_files is None else []
        # Converted for logits and again for their gradient; smaller blocks take the place of the first in between.
        table = _in_heap(passing.table_in_use, passing.table_in_use, least)
        moments["loss"] = [*before, *_kept(passing, 1.0), *[(passing.logits, passing.logits)] * 2, table, table]
        if passing.is_chunked:
            moments["loss"] += [_in_heap(passing.table, passing.table, least)] * 2
        n, bucket = trained.elements, _bucket(trained, engine)
        for name, done in (("backward", 0.0), ("first bucket", bucket / max(n, 1)), ("last layer", 1.0)):
            moments[name] = [
                *before,
                *_kept(passing, 1.0 - done),
                _in_heap(passing.layer, passing.layer_block, least),
                *(_in_heap(n_bytes, n_bytes, least) for n_bytes in passing.in_use),
                *[_in_heap(passing.table, passing.table, least)] * (2 if done == 1.0 else 1),
                *(_gradients(trained, engine, done, accumulates) if in_files is None else handed if done else []),
            ]
    return moments


def fullest(moments: Mapping[str, Sequence[Piece]], on_cpu: bool) -> dict[str, float]:
    """Return the bytes that each moment brings memory to, on top of what lasts.

    On a CPU the heap that an earlier moment took is still held, with holes between blocks that come and go.
    """
    if not on_cpu:
        return {name: sum(n_bytes for n_bytes, _ in pieces) for name, pieces in moments.items()}
    kept = max(
        (1.0 if name == OPENING else 1.0 + _GAPS) * sum(n_bytes for n_bytes, block in pieces if block < LARGE_BLOCK)
        for name, pieces in moments.items()
    )
    return {name: kept + sum(n_bytes for n_bytes, block in pieces if block >= LARGE_BLOCK) for name, pieces in moments.items()}


def _kept(passing: Passing, share: float) -> list[Piece]:
    """Return activations that are still kept, in the heap and given back."""
    return [((passing.kept - passing.mapped) * share, 0.0), (passing.mapped * share, GIVEN_BACK)]


def _in_heap(n_bytes: float, block: float, least: int = GIVEN_BACK) -> Piece:
    """Return a piece in blocks of so many bytes, which the heap has unless they are given back, from `least` bytes on."""
    return n_bytes, GIVEN_BACK if block >= least else 0.0


def _opening(trained: TrainedTensors, engine: EngineConfig, in_files: InFiles | None) -> list[Piece]:
    """Return what making the engine adds to its flat weights: weights as they were read, exact ones, rounded ones.

    Stage 0 has no flat weights. Masters and a gradient of 0 are made in memory before they go to files; elsewhere moments are more.
    """
    if not engine.zero_stage or (in_files is not None and in_files.weights):
        return []
    in_memory = 0 if trained.is_mapped else 4
    copies = 4 + engine.precision.dtype.itemsize if engine.precision.is_rounded else 0
    found = _by_tensor(trained, in_memory)
    if copies:
        found += _by_tensor(trained, max(4, copies - in_memory), GIVEN_BACK_ONCE)
    if in_files is not None:
        found.append((2 * _partition(trained, engine), LARGE_BLOCK))
    return found


def _bucket(trained: TrainedTensors, engine: EngineConfig) -> float:
    return float(min(engine.bucket_elements, trained.elements)) if engine.zero_stage else 0.0


def _staged_bytes(engine: EngineConfig) -> int:
    """Return the width of a gradient that waits in a bucket."""
    is_fp32 = engine.gradient_communication is GradientCommunication.FP32 or engine.zero_stage < 2
    return 4 if is_fp32 else engine.precision.dtype.itemsize


def _is_compact(engine: EngineConfig) -> bool:
    """Say whether DeepSpeed adds gradients up in the flat partition itself."""
    return engine.precision.is_rounded


def _partition(trained: TrainedTensors, engine: EngineConfig) -> float:
    return 4.0 * (trained.total / engine.world_size if engine.zero_stage else trained.elements)


def _earlier(trained: TrainedTensors, engine: EngineConfig) -> list[Piece]:
    """Return the gradients of micro-batches before: where they are not added to in place, a partition of their own."""
    if engine.zero_stage == 2:
        return [(_partition(trained, engine), _partition(trained, engine))]
    return _by_tensor(trained, 4)


def _gradients(trained: TrainedTensors, engine: EngineConfig, done: float, accumulates: bool) -> list[Piece]:
    """Return the gradients of a backward pass that has come to this share of the model's parameters.

    Those that are added to earlier ones in place take nothing more.
    """
    if engine.zero_stage < 2:
        return [] if accumulates else [(n_bytes * done, block) for n_bytes, block in _by_tensor(trained, 4)]
    bucket = _bucket(trained, engine) * _staged_bytes(engine)
    found = [(min(bucket, trained.elements * done * _staged_bytes(engine)), bucket)]
    if not (accumulates and _is_compact(engine)):
        found.append((_partition(trained, engine) * done, _partition(trained, engine)))
    return found


def _exchange(trained: TrainedTensors, engine: EngineConfig, accumulates: bool) -> list[Piece]:
    """Return what the ranks' exchange of the last gradients holds."""
    partition, bucket = _partition(trained, engine), _bucket(trained, engine) * _staged_bytes(engine)
    if not engine.zero_stage:
        copied = 4.0 * min(trained.elements, _WHOLE_ELEMENTS) if engine.world_size > 1 else 0.0
        return [*_by_tensor(trained, 4), _in_heap(copied, copied)]
    copy = _bucket(trained, engine) * summed_bytes(engine) if engine.world_size > 1 or _is_compact(engine) else 0.0
    found: list[Piece] = [(bucket, bucket), (copy, copy), (partition, partition)]
    if engine.zero_stage == 2 and accumulates and not _is_compact(engine):
        found.append((partition, partition))
    return found


def _update(trained: TrainedTensors, engine: EngineConfig) -> list[Piece]:
    if not engine.zero_stage:
        return _by_tensor(trained, 4)
    partition = _partition(trained, engine)
    is_copied = UPDATE_COPIES_GRADIENTS and not _is_compact(engine)
    return [(partition, partition)] * (2 if is_copied else 1)


def _gathered(trained: TrainedTensors, engine: EngineConfig) -> float:
    """Return what gloo gathers updated weights in, once gradients are gone: one copy of a group's, outside the heap."""
    if not engine.zero_stage or engine.world_size == 1:
        return 0.0
    groups = [trained.elements - trained.apart, trained.apart if engine.world_size > engine.expert_parallel else 0]
    return float(max(groups) * engine.precision.dtype.itemsize)


def _updated_on_host(trained: TrainedTensors, engine: EngineConfig) -> float:
    """Return what an update on the host adds to masters and moments: the gradients, and rounded weights on their way back."""
    rounded = engine.precision.dtype.itemsize if engine.precision.is_rounded else 0
    return _partition(trained, engine) * (1 + rounded / 4)


def summed_bytes(engine: EngineConfig) -> int:
    """Return the width in which ranks sum gradients."""
    return 4 if engine.gradient_communication is GradientCommunication.FP32 else engine.precision.dtype.itemsize


def _by_tensor(trained: TrainedTensors, width: int, least: int = GIVEN_BACK) -> list[Piece]:
    """Return the bytes of tensors of a width, those in the heap and those of `least` bytes, which are given back, apart."""
    large = sum(size for size in trained.sizes if size * width >= least)
    return [(float((trained.elements - large) * width), 0.0), (float(large * width), GIVEN_BACK)]
