"""Whether this process is one of several that torchrun, srun or mpirun started for one command, which of them, and where they meet.

Read from environment variables: torchrun's (also set by Kubernetes operators and by hand), Open MPI's, PMI's (MPICH, Intel MPI) and
Slurm's. The launcher nearest to the process goes first: mpirun inside a Slurm job starts its daemons by srun.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from adapt.core.errors import ConfigError
from pipelines.ranks.local import LOOPBACK

# A starter, and its variables for the rank, the number of ranks, and the rank among those on the same host.
_STARTERS = (
    ("torchrun", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",)),
    ("mpirun", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    ("mpirun", "PMI_RANK", ("PMI_SIZE",), ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID")),
    ("srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_LOCALID",)),
)
_ON_ONE_HOST = (("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"), ("MPI_LOCALNRANKS", "PMI_SIZE"))
_NODES = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
_IDENTITIES = ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
_PORTS = range(20_000, 32_000)  # below those that systems give to outgoing connections


@dataclass(frozen=True, kw_only=True)
class Place:
    """A process's place among those that were started with it.

    They meet at `port` of `address`, rank 0's host; with `has_agent`, torchrun's agent listens there already.
    """

    starter: str
    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    has_agent: bool


def place_among(environment: Mapping[str, str]) -> Place | None:
    """Return this process's place, or None where it was started by itself.

    Raises:
        ConfigError: a variable is no number, or rank 0's host is not known.
    """
    for starter, rank, sizes, local_ranks in _STARTERS:
        size = next((name for name in sizes if environment.get(name)), None)
        if not environment.get(rank) or size is None or _is_batch_script(starter, environment):
            continue
        world_size = _number(environment, size)
        if world_size == 1:
            return None
        local = next((name for name in local_ranks if environment.get(name)), None)
        return Place(
            starter=starter,
            rank=_number(environment, rank),
            world_size=world_size,
            local_rank=0 if local is None else _number(environment, local),
            address=_address(starter, environment),
            port=_number(environment, "MASTER_PORT") if environment.get("MASTER_PORT") else _agreed_port(environment),
            has_agent=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    return None


def is_first(environment: Mapping[str, str]) -> bool:
    """Say whether this process speaks for all: it is rank 0, or no other is known of."""
    return next((environment[rank] for _, rank, *_ in _STARTERS if environment.get(rank)), "0") == "0"


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm list like `rack[01-03,07]-gpu,login`."""
    entry = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert entry is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", entry.group())


def _is_batch_script(starter: str, environment: Mapping[str, str]) -> bool:
    """Say whether this is the one process of a batch script, which has a job's variables and is no step of it."""
    return starter == "srun" and "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment


def _address(starter: str, environment: Mapping[str, str]) -> str:
    if environment.get("MASTER_ADDR"):
        return environment["MASTER_ADDR"]
    if any(environment.get(local) and environment[local] == environment.get(all_ranks) for local, all_ranks in _ON_ONE_HOST):
        return LOOPBACK
    nodes = next((environment[name] for name in _NODES if environment.get(name)), None)
    if starter == "srun" and nodes is not None:
        return first_host(nodes)
    raise ConfigError(f"MASTER_ADDR: is not set, so the processes that {starter} started do not know rank 0's host; export it")


def _agreed_port(environment: Mapping[str, str]) -> int:
    """Return a port that all processes of a job come to, and other jobs hardly."""
    identity = " ".join(environment.get(name, "") for name in _IDENTITIES)
    return _PORTS[int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16) % len(_PORTS)]


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as error:
        raise ConfigError(f"{name}: '{environment[name]}' in the environment is no number; unset it, or use a launcher") from error
