"""The arrows between packages, one place per third-party package, what tests share, and the size of files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adapt", "pseudo_label", "pipelines")
SUPPORT = "tests.support"  # what tests share; a test is imported by nobody, and nothing of tests by what is shipped
LIBRARY = {
    "adapt.core",
    "adapt.text",
    "adapt.model",
    "adapt.objective_config",
    "adapt.objective",
    "adapt.scoring",
    "adapt.checkpoint",
    "adapt.train",
    "pseudo_label",
}
_CONFIG, _RANKS = "pipelines.config", "pipelines.ranks"
_SERVING = "pipelines.serving"
_STAGES, _WALK = {"pipelines.report_page", _CONFIG, _RANKS, "pipelines.stages"}, "pipelines.walk"
# Each layer may import itself and what is listed for it. `pipelines` itself is the faces: one file per command.
LAYERS = {
    "adapt": set(),
    "adapt.core": set(),
    "adapt.text": {"adapt.core"},
    "adapt.model": {"adapt.core", "adapt.text"},
    "adapt.objective_config": {"adapt.core"},
    "adapt.objective": {"adapt.core", "adapt.text", "adapt.model", "adapt.objective_config"},
    "adapt.scoring": {"adapt.core", "adapt.text", "adapt.model"},
    "adapt.checkpoint": {"adapt.core", "adapt.text", "adapt.model", "adapt.scoring"},
    "adapt.train": {"adapt.core", "adapt.text", "adapt.model", "adapt.objective_config", "adapt.objective", "adapt.checkpoint"},
    "pseudo_label": {"adapt.core", "adapt.text"},
    _CONFIG: LIBRARY,
    "pipelines.report_page": {"adapt.core"},
    _RANKS: {"adapt.core", "adapt.train", _CONFIG},
    "pipelines.stages": LIBRARY | _STAGES,
    _WALK: LIBRARY | _STAGES,
    _SERVING: LIBRARY | {_CONFIG, "pipelines.report_page"},
    "pipelines.tools": LIBRARY | _STAGES | {_WALK, _SERVING},
    "pipelines.bench": LIBRARY | _STAGES | {_WALK},
    "pipelines.command_line": LIBRARY | _STAGES | {_WALK},
    "pipelines": {"pipelines.command_line", "pipelines.tools", "pipelines.stages"},
}
# The library's composition root joins labelling with a model's checkpoint.
EXCEPTIONS = {
    "pseudo_label/predictor.py": {"adapt.checkpoint", "adapt.scoring"},
    "pseudo_label/__init__.py": {"pseudo_label.predictor"},
}
ONE_FILE = {
    "sentencepiece": "adapt/text/tokenizer.py",
    "datasets": "adapt/text/tokenized_corpus.py",
    "deepspeed": "adapt/train/engine.py",
    "wandb": "adapt/train/wandb_tracker.py",
    "hydra": "pipelines/command_line/compose.py",
    "omegaconf": "pipelines/command_line/compose.py",
    "pyarrow": "pseudo_label/store.py",
    "transformers": "adapt/model/hf.py",
    "peft": "adapt/model/lora.py",
    "bitsandbytes": "adapt/model/quantized_base.py",
    "tokenizers": "adapt/text/hf_tokenizer.py",
    "sklearn": "pseudo_label/teachers/bag_of_words.py",
    "scipy": "pseudo_label/statistics.py",
    "openpyxl": "adapt/text/rows/xlsx_rows.py",
    "bokeh": "pipelines/report_page/charts.py",
    "rich": "pipelines/tools/watch_screen.py",
    "gguf": "adapt/checkpoint/gguf_files.py",
    "datatrove": "adapt/text/cleaning/passes.py",
    "loguru": "adapt/text/cleaning/executors.py",
    "ray": "adapt/text/cleaning/ray_executor.py",
    "opencc": "adapt/text/cleaning/characters.py",
    "warcio": "adapt/text/warc.py",
    "zstandard": "adapt/text/rows/zstd_files.py",
    "jinja2": "pipelines/report_page/templates.py",
    "fastapi": "pipelines/serving/application.py",
    "pydantic": "pipelines/serving/application.py",
    "uvicorn": "pipelines/serving/server.py",
}
# What exports bring along runs in transformers; a benchmark's baseline is another package's own code; Parquet is written in one
# place and read from users in another.
ALSO_IN = {
    ("sentencepiece", "adapt/text/sentencepiece_child.py"),
    ("scipy", "adapt/checkpoint/merging/mlps.py"),
    ("jinja2", "adapt/text/chat_template.py"),  # templates of bases, in a sandbox; the other file has this project's own
    ("pyarrow", "adapt/text/rows/arrow_rows.py"),
    ("pyarrow", "adapt/text/rows/parquet_rows.py"),
    ("datatrove", "adapt/text/cleaning/executors.py"),
    ("datatrove", "adapt/text/cleaning/ray_executor.py"),
    ("transformers", "adapt/checkpoint/own_in_transformers/configuration_moe_adapt.py"),
    ("transformers", "adapt/checkpoint/own_in_transformers/modeling_moe_adapt.py"),
    ("transformers", "pipelines/bench/lm_eval_baseline.py"),
    ("tokenizers", "pipelines/bench/lm_eval_baseline.py"),
    ("deepspeed", "adapt/train/brought_gemm.py"),  # one of its kernels
    ("deepspeed", "pipelines/bench/moe_peers.py"),
    ("transformers", "pipelines/bench/moe_peers.py"),
}
MAX_LINES = 400


def sources(root: Path) -> list[Path]:
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def imports_of(path: Path) -> list[str]:
    """Return the dotted names that a file imports, inside functions too, but for those that only a type checker reads."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            found.extend(str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def layer_of(name: str) -> str | None:
    """Return the longest layer that a dotted name lies in; a package's own `__init__` belongs to the package's layer."""
    parts = name.split(".")
    for length in (2, 1):
        if (layer := ".".join(parts[:length])) in LAYERS:
            return layer
    return None


def violations(root: Path) -> list[str]:
    """List every import that runs against the arrows, and every third-party package outside its file."""
    found = []
    for path in sources(root):
        here = path.relative_to(root)
        layer = layer_of(module_name(path, root))
        assert layer is not None, f"{here} lies in no layer"
        allowed = LAYERS[layer] | {layer} | EXCEPTIONS.get(str(here), set())
        for name in imports_of(path):
            target = layer_of(name)
            if target is not None and target not in allowed:
                found.append(f"{here} imports {name}")
            package = name.split(".")[0]
            if package == "tests":
                found.append(f"{here} imports {name}, which is not shipped")
            if package in ONE_FILE and str(here) != ONE_FILE[package] and (package, str(here)) not in ALSO_IN:
                found.append(f"{here} imports {package}, which belongs to {ONE_FILE[package]}")
    return found


def circles(root: Path) -> list[list[str]]:
    """List the sets of files that import each other in a circle, imports inside functions included."""
    files = {module_name(path, root): path for path in sources(root)}
    needs = {name: _needs(path, files) - {name} for name, path in files.items()}
    reached = {name: _reached(name, needs) for name in files}
    found = {tuple(sorted({name, *(other for other in reached[name] if name in reached[other])})) for name in files}
    return [list(circle) for circle in found if len(circle) > 1]


def _needs(path: Path, files: dict[str, Path]) -> set[str]:
    return {file for target in imports_of(path) if (file := _file_of(target, files)) is not None}


def _file_of(name: str, files: dict[str, Path]) -> str | None:
    return name if name in files else name.rpartition(".")[0] if name.rpartition(".")[0] in files else None


def _reached(start: str, needs: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = needs[left.pop()] - found
        found |= new
        left += new
    return found


def test_imports_run_one_way_and_third_party_packages_have_one_file() -> None:
    assert violations(ROOT) == []


def imports_between_tests(root: Path) -> list[str]:
    """List every import of a test, or of another test folder's file, from below `tests`."""
    found = []
    for path in sorted((root / "tests").rglob("*.py")):
        for name in imports_of(path):
            last = name.split(".")
            is_test = any(part.startswith("test_") or part == "conftest" for part in last[:-1])
            if is_test or (last[0] == "tests" and not name.startswith(f"{SUPPORT}.")):
                found.append(f"{path.relative_to(root)} imports {name}; what tests share belongs into tests/support")
    return found


def test_tests_share_helpers_by_the_support_package_only() -> None:
    assert imports_between_tests(ROOT) == []


@pytest.mark.parametrize(
    "line", ["from test_gpt import small_config", "from tests.model.test_gpt import small_config", "from tests import conftest"]
)
def test_a_planted_import_of_a_test_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "tests" / "support").mkdir(parents=True)
    (tmp_path / "tests" / "support" / "planted.py").write_text(line, encoding="utf-8")
    assert len(imports_between_tests(tmp_path)) == 1


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(ROOT) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("adapt/core/planted.py", "from adapt.model.gpt import GPT"),
        ("adapt/core/__init__.py", "from adapt.model.gpt import GPT"),
        ("adapt/text/planted.py", "def f():\n    import adapt.train.loop"),
        ("pseudo_label/planted.py", "from adapt.checkpoint import weights"),
        ("adapt/train/planted.py", "from pipelines.config import schema"),
        ("adapt/model/planted.py", "import deepspeed"),
        ("adapt/model/planted.py", "import importlib\nimportlib.import_module('deepspeed')"),
        ("adapt/text/planted.py", "def f():\n    from transformers import AutoTokenizer"),
        ("pipelines/planted.py", "from hydra import compose"),
        ("pipelines/config/planted.py", "from pipelines.stages import scores"),
        ("pipelines/config/__init__.py", "def f():\n    from pipelines.walk.order import walk"),
        ("pipelines/stages/planted.py", "def f():\n    from pipelines.command_line.compose import main"),
        ("pipelines/stages/planted.py", "from pipelines.walk import preflight"),
        ("adapt/model/planted.py", "from tests.support.tiny_models import tiny_config"),
        ("pipelines/ranks/planted.py", "from pipelines.stages import rank_jobs"),
    ],
)
def test_a_planted_upward_import_is_found(tmp_path: Path, place: str, line: str) -> None:
    planted = tmp_path / place
    planted.parent.mkdir(parents=True)
    planted.write_text(line, encoding="utf-8")
    assert len(violations(tmp_path)) == 1


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    wing = tmp_path / "pipelines" / "stages"
    wing.mkdir(parents=True)
    (wing / "__init__.py").write_text("", encoding="utf-8")
    (wing / "one.py").write_text("from pipelines.stages import two", encoding="utf-8")
    (wing / "two.py").write_text("def f():\n    from pipelines.stages.three import g", encoding="utf-8")
    (wing / "three.py").write_text("from pipelines.stages.one import h", encoding="utf-8")
    (wing / "four.py").write_text("from pipelines.stages.one import h", encoding="utf-8")
    assert circles(tmp_path) == [["pipelines.stages.one", "pipelines.stages.three", "pipelines.stages.two"]]


def test_no_file_is_over_400_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in [*sources(ROOT), *sorted((ROOT / "tests").rglob("*.py"))]
        if (n := _lines(p)) > MAX_LINES
    }
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
    code = f"import sys, pipelines.stages.rank_jobs, pipelines.worker; print([m for m in {packages} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
