"""Whether a process finds out that others were started with it, by which launcher, and where they meet."""

from __future__ import annotations

import pytest

from adapt.core.errors import ConfigError
from pipelines.ranks.surroundings import first_host, is_first, place_among

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "rack[03-04]-cpu,login",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, ("torchrun", 3, 4, 1, "one", 29500, False)),
        ({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"}, ("torchrun", 3, 4, 1, "one", 29500, True)),
        ({**OPEN_MPI, "MASTER_PORT": "1"}, ("mpirun", 1, 2, 1, "127.0.0.1", 1, False)),
        ({**MPICH, "MASTER_PORT": "1"}, ("mpirun", 1, 2, 1, "127.0.0.1", 1, False)),
        ({**SRUN, "MASTER_PORT": "1"}, ("srun", 5, 8, 1, "rack03-cpu", 1, False)),
        ({**SRUN, "MASTER_PORT": "1", "MASTER_ADDR": "two"}, ("srun", 5, 8, 1, "two", 1, False)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "6", "MASTER_PORT": "1"}, ("srun", 5, 6, 1, "rack03-cpu", 1, False)),
        ({**SRUN, **OPEN_MPI, "MASTER_PORT": "1"}, ("mpirun", 1, 2, 1, "127.0.0.1", 1, False)),
        ({**SRUN, **TORCHRUN}, ("torchrun", 3, 4, 1, "one", 29500, False)),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "one", "MASTER_PORT": "9"}, ("torchrun", 1, 2, 0, "one", 9, False)),
    ],
)
def test_each_launcher_s_variables_give_the_place(environment: dict[str, str], expected: tuple[object, ...]) -> None:
    place = place_among(environment)
    assert place is not None
    found = (place.starter, place.rank, place.world_size, place.local_rank, place.address, place.port, place.has_agent)
    assert found == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {"RANK": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NODELIST": "one"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["nothing", "one process", "no size", "a batch script", "a step of one task"],
)
def test_a_process_by_itself_starts_its_ranks(environment: dict[str, str]) -> None:
    assert place_among(environment) is None


def test_all_processes_of_a_job_come_to_the_same_port_and_another_job_to_another() -> None:
    def port(**more: str) -> int:
        place = place_among({**SRUN, **more})
        assert place is not None
        return place.port

    assert port() == port(SLURM_PROCID="0", SLURM_LOCALID="0")
    assert len({port(SLURM_JOB_ID=str(number)) for number in range(20)}) >= 19
    assert all(1024 < port(SLURM_STEP_ID=str(number)) < 32_768 for number in range(20))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "^MASTER_ADDR: is not set.* mpirun .*export it"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4"}, "^MASTER_ADDR: is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "^MASTER_ADDR: is not set.* torchrun "),
        ({**TORCHRUN, "RANK": "one"}, "^RANK: 'one' in the environment is no number"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "^MASTER_PORT: 'http'"),
    ],
)
def test_what_is_lacking_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        place_among(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("one", "one"),
        ("one,two", "one"),
        ("node[1-4]", "node1"),
        ("node[007,9-12],other", "node007"),
        ("rack[2-3]-cpu[08-09],x[1]", "rack2-cpu08"),
        ("a.b-c[10]", "a.b-c10"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_only_the_first_speaks() -> None:
    assert is_first({})
    assert is_first({**MPICH, "PMI_RANK": "0"})
    assert not is_first(MPICH)
    assert not is_first({"RANK": "one", "WORLD_SIZE": "2"}), "every process would say so"
