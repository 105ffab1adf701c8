"""The benchmark of upcycling and students: what it says of models that are known to agree, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.checkpoint.upcycling.options import UpcycleOptions
from adapt.checkpoint.upcycling.own import write_sparse
from adapt.core.errors import ConfigError
from pipelines.bench.contract import all_benchmarks
from tests.support.dense_checkpoints import make_dense
from tests.support.hf_checkpoints import make_checkpoint

QUICK = {"rows": "4", "tokens": "24", "rounds": "1"}


def test_an_upcycled_model_says_what_its_source_says_and_a_merged_one_does_not(tmp_path: Path) -> None:
    run = all_benchmarks().get("upcycling").run
    dense = make_dense(tmp_path / "dense")
    source, sparse, again = run({**QUICK, "source": str(dense), "experts": "3", "results": str(dense)})
    assert [row["checkpoint"] for row in (source, sparse, again)] == ["source", "3 experts", "dense"]
    assert source["divergence from source"] == again["largest difference"] == 0 < sparse["largest difference"] < 1e-4
    assert sparse["same likeliest token"] == 1 and sparse["nats/token"] == pytest.approx(source["nats/token"], abs=1e-5)
    assert sparse["weights"] > source["weights"] == again["weights"]
    (tmp_path / "sparse").mkdir()
    write_sparse(tmp_path / "sparse", dense, UpcycleOptions(experts=[4], noise=1.0))
    lines = run({**QUICK, "source": str(tmp_path / "sparse")})
    assert [row["checkpoint"] for row in lines] == ["source", "merged", "merged, two groups"]
    assert min(row["divergence from source"] for row in lines[1:]) > 1e-3
    with pytest.raises(ConfigError, match="has another vocabulary"):
        run({**QUICK, "source": str(dense), "results": str(make_checkpoint(tmp_path / "other", "llama"))})
