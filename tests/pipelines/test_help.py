"""`--help` and the menu: which keys a command reads, within a terminal's width, without torch and in little time."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from pipelines.command_line.help import WIDTH, help_of, menu
from pipelines.config.commands import COMMANDS, STAGES
from pipelines.config.described import keys
from pipelines.config.locations import conf_dir
from tests.support.command_line import ROOT

COMPOSED = [command for command in COMMANDS if command.reads != ()]
SHOWN = {command.name: help_of(command.name) for command in COMPOSED}


def shown_keys(text: str) -> set[str]:
    """Return the keys that a help text lists."""
    part = text[text.index("\nkeys:") : text.index("\ngroups ")]
    return set(re.findall(r"^  ([a-z_][\w.]*)(?:=| \(mandatory\))", part, re.MULTILINE))


def test_every_command_composes_and_every_configuration_is_a_command() -> None:
    assert {command.name for command in COMPOSED} == {path.stem for path in conf_dir().glob("*.yaml")} - {"hydra_settings"}
    assert [command.name for command in COMMANDS if command.is_stage] == list(STAGES)
    for command in COMMANDS:
        assert importlib.util.find_spec(f"pipelines.{command.name}") is not None


def test_what_commands_read_exists() -> None:
    paths = [leaf.path for leaf in keys()]
    for command in COMPOSED:
        for key in command.reads or ():
            assert any(path == key or path.startswith(f"{key}.") for path in paths), (command.name, key)


@pytest.mark.parametrize("name", list(SHOWN))
def test_help_fits_a_terminal_and_gives_two_examples(name: str) -> None:
    text = SHOWN[name]
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert text.count(f"  python -m pipelines.{name} ") == 2
    assert "experiment=" in text


def test_help_lists_the_keys_that_a_command_reads_and_no_others() -> None:
    assert shown_keys(SHOWN["tokenizer"]) == {
        "force", "run.name", "run.dir", "data.corpus", "data.domain_field", "data.encoding", "data.quotes",
        "tokenizer.vocab_size", "tokenizer.max_sentences", "tokenizer.character_coverage", "tokenizer.memory_gb",
        "tokenizer.threads",
    }  # fmt: skip
    assert shown_keys(SHOWN["run"]) == {leaf.path for leaf in keys({"model/router": "top1"})}
    assert "seed" in shown_keys(SHOWN["evaluate"])
    assert not any(key.startswith("pretrain.") for key in shown_keys(SHOWN["evaluate"]))


def test_an_entry_has_sentence_type_range_and_default() -> None:
    words = " ".join(SHOWN["pretrain"].split())
    assert "pretrain.steps=1000 [whole number, 1 or more, in steps] Optimizer steps of pretraining." in words
    assert "objective.balance.scope=step [step | sequence | microbatch] Over what" in words
    assert "model.n_layers=6 [" in words
    assert "model.router.jitter=0 [number, 0 or more, less than 1] In training" in words


def test_choices_before_help_decide_what_is_shown() -> None:
    text = help_of("pretrain", ["model/router=s_base", "engine=node8", "--help"])
    assert "model.router.iterations=500" in text
    assert "model.router.jitter" not in text
    assert "engine.world_size=8" in text


def test_the_menu_has_every_command_stages_first() -> None:
    lines = menu().splitlines()
    places = [next(i for i, line in enumerate(lines) if line.startswith(f"  {command.name} ")) for command in COMMANDS]
    assert places == sorted(places)
    assert all(command.says in menu() for command in COMMANDS)
    assert max(map(len, lines)) <= WIDTH


def test_menu_and_help_import_neither_torch_nor_hydra_compositions() -> None:
    code = (
        "import sys, runpy\nruns = [('pipelines.__main__', []), ('pipelines.run', ['--help'])]\n"
        "for name, words in runs:\n    sys.argv = [name, *words]\n    try:\n        runpy.run_module(name, run_name='__main__')\n"
        "    except SystemExit as left:\n        assert not left.code\n"
        "print([m for m in ('torch', 'datasets', 'pandas', 'transformers', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "stages, in the order data flows:" in done.stdout
