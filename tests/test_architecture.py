"""The arrows between packages, one place per third-party package, and the size of files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adapt", "pseudo_label", "pipelines")
# Each layer may import itself and what is listed for it.
LAYERS = {
    "adapt.core": set(),
    "adapt.text": {"adapt.core"},
    "adapt.model": {"adapt.core", "adapt.text"},
    "adapt.objective_config": {"adapt.core"},
    "adapt.objective": {"adapt.core", "adapt.text", "adapt.model", "adapt.objective_config"},
    "adapt.scoring": {"adapt.core", "adapt.text", "adapt.model"},
    "adapt.checkpoint": {"adapt.core", "adapt.text", "adapt.model", "adapt.scoring"},
    "adapt.train": {"adapt.core", "adapt.text", "adapt.model", "adapt.objective_config", "adapt.objective", "adapt.checkpoint"},
    "adapt.report": {"adapt.core"},
    "pseudo_label": {"adapt.core", "adapt.text"},
    "pipelines": {
        "adapt.core",
        "adapt.text",
        "adapt.model",
        "adapt.objective_config",
        "adapt.objective",
        "adapt.scoring",
        "adapt.checkpoint",
        "adapt.train",
        "adapt.report",
        "pseudo_label",
    },
}
# The library's composition root joins labelling with a model's checkpoint.
EXCEPTIONS = {"pseudo_label/predictor.py": {"adapt.checkpoint", "adapt.scoring"}}
ONE_FILE = {
    "sentencepiece": "adapt/text/tokenizer.py",
    "datasets": "adapt/text/tokenized_corpus.py",
    "deepspeed": "adapt/train/engine.py",
    "wandb": "adapt/train/tracking.py",
    "hydra": "pipelines/compose.py",
    "omegaconf": "pipelines/compose.py",
    "pyarrow": "pseudo_label/store.py",
    "transformers": "adapt/model/hf.py",
    "tokenizers": "adapt/text/hf_tokenizer.py",
    "sklearn": "pseudo_label/teachers/bag_of_words.py",
    "openpyxl": "adapt/text/rows/xlsx_rows.py",
}
# A benchmark's baseline is another package's own code; Parquet is written in one place and read from users in another.
ALSO_IN = {
    ("pyarrow", "adapt/text/rows/parquet_rows.py"),
    ("transformers", "pipelines/bench/lm_eval_baseline.py"),
    ("tokenizers", "pipelines/bench/lm_eval_baseline.py"),
    ("deepspeed", "pipelines/bench/moe_peers.py"),
    ("transformers", "pipelines/bench/moe_peers.py"),
}
MAX_LINES = 400


def sources(root: Path) -> list[Path]:
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def imports_of(path: Path) -> list[str]:
    """Return the dotted names that a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            found += [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return found


def layer_of(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] == "adapt" and len(parts) > 1:
        return ".".join(parts[:2])
    return parts[0] if parts[0] in PACKAGES else None


def violations(root: Path) -> list[str]:
    """List every import that runs against the arrows, and every third-party package outside its file."""
    found = []
    for path in sources(root):
        here = path.relative_to(root)
        layer = layer_of(".".join(here.with_suffix("").parts))
        if layer is None or layer == "adapt" or here.parts[-1] == "__init__.py":
            continue
        allowed = LAYERS[layer] | {layer} | EXCEPTIONS.get(str(here), set())
        for name in imports_of(path):
            target = layer_of(name)
            if target is not None and target not in allowed:
                found.append(f"{here} imports {name}")
            package = name.split(".")[0]
            if package in ONE_FILE and str(here) != ONE_FILE[package] and (package, str(here)) not in ALSO_IN:
                found.append(f"{here} imports {package}, which belongs to {ONE_FILE[package]}")
    return found


def test_imports_run_one_way_and_third_party_packages_have_one_file() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("adapt/core/planted.py", "from adapt.model.gpt import GPT"),
        ("adapt/text/planted.py", "def f():\n    import adapt.train.loop"),
        ("pseudo_label/planted.py", "from adapt.checkpoint import weights"),
        ("adapt/train/planted.py", "from pipelines import schema"),
        ("adapt/model/planted.py", "import deepspeed"),
        ("adapt/model/planted.py", "import importlib\nimportlib.import_module('deepspeed')"),
        ("adapt/text/planted.py", "def f():\n    from transformers import AutoTokenizer"),
        ("pipelines/planted.py", "from hydra import compose"),
    ],
)
def test_a_planted_upward_import_is_found(tmp_path: Path, place: str, line: str) -> None:
    planted = tmp_path / place
    planted.parent.mkdir(parents=True)
    planted.write_text(line, encoding="utf-8")
    assert len(violations(tmp_path)) == 1


def test_no_file_is_over_400_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in [*sources(ROOT), *(ROOT / "tests").rglob("*.py")] if (n := _lines(p)) > MAX_LINES}
    assert long == {}


def test_every_module_and_public_class_says_what_it_is() -> None:
    silent = []
    for path in sources(ROOT):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            silent.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert silent == []


def test_ranks_import_no_hydra(tmp_path: Path) -> None:
    import subprocess
    import sys

    packages = "('hydra', 'omegaconf', 'wandb', 'deepspeed', 'transformers', 'tokenizers')"
    code = f"import sys, pipelines.rank, pipelines.worker; print([m for m in {packages} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
