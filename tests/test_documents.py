"""What the documents say exists: links, commands, paths, keys of settings and of task files, names of plug-ins."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from adapt.core.typed import defaults_of, to_plain
from adapt.model.config import GPTConfig, HFConfig
from adapt.model.routers.contract import all_routers
from adapt.text.rows.reading import ENDINGS
from pipelines.bench.contract import all_benchmarks
from pipelines.config.label_settings import Teacher
from pipelines.config.schema import PipelineConfig
from pseudo_label.criteria.contract import CRITERIA, get_criterion
from pseudo_label.decision import Method
from pseudo_label.lexical_config import LexicalConfig, RuleConfig
from pseudo_label.task_config import FieldConfig, PromptConfig, TaskConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    + [*(ROOT / "docs").glob("*.md"), *(ROOT / "pipelines" / "demo").rglob("*.md")]
)
# A log and a changelog tell of what was there once.
PRESENT = [page for page in PAGES if page.name not in ("CHANGELOG.md", "study_log.md")]
MOST_WORDS = 1200
FOLDERS = ("adapt/", "pseudo_label/", "pipelines/", "conf/", "tests/", "docs/")
FILES = (".json", ".html", ".yaml", ".md", ".py")
TASK_TABLES = {
    "Keys of a task": TaskConfig,
    "Keys of a field": FieldConfig,
    "Keys of a prompt": PromptConfig,
    "Keys of a rule": RuleConfig,
    "Keys of lexical": LexicalConfig,
}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Take blocks and spans of code out, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Return the names under which a page's headings can be linked."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(text: str, directory: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text.replace("[`", "[").replace("`]", "]"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (directory / name).resolve() if name else None
        is_there = place is None or place.exists()
        if not is_there or (anchor and anchor not in anchors(text if place is None else text_of(place))):
            yield target


def missing_commands(text: str) -> Iterator[str]:
    for name in re.findall(r"python -m pipelines\.([a-z_]+)", text):
        places = [ROOT / "pipelines" / f"{name}.py", ROOT / "pipelines" / name / "__main__.py"]
        if not any(place.is_file() and '__name__ == "__main__"' in text_of(place) for place in places):
            yield f"pipelines.{name}"


def missing_paths(text: str) -> Iterator[str]:
    for name in re.findall(r"`([\w./]+)`", text):
        if name.startswith(FOLDERS) and not (ROOT / name).exists():
            yield name


def unknown_settings(text: str) -> Iterator[str]:
    """Yield dotted keys that begin with a section of the configuration and lead nowhere."""
    plain = defaults_of(PipelineConfig, None)
    routers = [defaults_of(all_routers().get(name).config, None) for name in all_routers()]
    router = {key: value for settings in routers for key, value in settings.items()}
    tree = {**plain, "model": {**defaults_of(GPTConfig, None), **defaults_of(HFConfig, None), "router": router}}
    for name in re.findall(r"(?<![\w/.<])([a-z_]+(?:\.[a-z_0-9]+)+)(?==|`|\s*\(`)", text):
        if name.endswith(FILES):
            continue
        section: object = tree
        for part in name.split("."):
            if isinstance(section, dict) and section:
                if part not in section:
                    if section is not tree:
                        yield name
                    break
                section = section[part]


CHECKS: dict[str, Callable[[str], Iterator[str]]] = {
    "commands": missing_commands,
    "paths": missing_paths,
    "settings": unknown_settings,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(dead_links(text_of(page), page.parent)) == []


@pytest.mark.parametrize("check", CHECKS)
def test_every_command_path_and_setting_that_is_named_exists(check: str) -> None:
    found = {page.name: names for page in PRESENT if (names := sorted(set(CHECKS[check](text_of(page)))))}
    assert found == {}


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("commands", "`python -m pipelines.evalute task=x`"),
        ("paths", "see `adapt/core/artefacts.py`"),
        ("settings", "`pseudo_label.teeching_rounds=2`"),
        ("settings", "`model.router.jitters` is"),
        ("settings", "    engine.worldsize=2"),
    ],
)
def test_what_is_not_there_is_found(check: str, text: str) -> None:
    assert len(list(CHECKS[check](text))) == 1


@pytest.mark.parametrize("link", ["docs/nowhere.md", "#no-such-heading", "docs/tasks.md#no-such-heading"])
def test_a_dead_link_is_found(link: str) -> None:
    assert list(dead_links(f"# A heading\n[this]({link}) and [that](#a-heading)", ROOT)) == [link]


def test_the_readme_is_one_page() -> None:
    assert len(text_of(ROOT / "README.md").split()) <= MOST_WORDS


def section_of(page: str, heading: str) -> str:
    """Return the text from a heading up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text_of(ROOT / "docs" / page), re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page} has no heading '{heading}'"
    return found.group(1)


@pytest.mark.parametrize("heading", TASK_TABLES)
def test_the_page_on_tasks_has_every_key_with_its_default_and_no_other(heading: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section_of("tasks.md", heading), re.MULTILINE))
    fields = {field.name: field for field in dataclasses.fields(TASK_TABLES[heading])}
    assert set(rows) == set(fields)
    for name, field in fields.items():
        said = rows[name].strip()
        if not said.startswith("`"):  # in words: it depends on the file, or is that of another table
            is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            assert said == {"name": "the file's name", "lexical": "the defaults below"}.get(name, "required" if is_needed else None)
            continue
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        assert yaml.safe_load(said.strip("`")) == to_plain(default), name


def named_in(page: str, heading: str) -> set[str]:
    """Return what stands in code in the first column of a section's table."""
    first = re.findall(r"^\| (`[^|]*) \|", section_of(page, heading), re.MULTILINE)
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def test_tables_of_names_are_complete() -> None:
    get_criterion("sum")  # imports the folder
    assert named_in("labelling.md", "Criteria") == set(CRITERIA.names())
    assert named_in("labelling.md", "Teachers") == {teacher.value for teacher in Teacher}
    assert named_in("labelling.md", "Methods: from scores to decisions") == {method.value for method in Method}
    assert named_in("running.md", "Benchmarks") - {"python -m pipelines.bench ..."} == set(all_benchmarks())
    listed = re.search(r"^\| `model/router=NAME` \| (.+?);", section_of("models.md", "The project's own model"), re.MULTILINE)
    assert listed is not None and set(re.findall(r"`(\w+)`", listed.group(1))) == set(all_routers())
    assert named_in("tasks.md", "Files of rows") == set(ENDINGS)
