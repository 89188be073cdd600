"""README and docs say what the program does: their files, commands, presets and the table of flags."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from lm.config.flags import Parser, flags_markdown
from lm.config.presets import PRESETS
from lm.config.values import make_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "data/README.md", "results/README.md", "results/ptb-200/adaptation.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}


def found(pattern: str) -> list[tuple[str, str]]:
    """(page, match) of a pattern with one group, in all pages."""
    return sorted({(page, match) for page, text in TEXTS.items() for match in re.findall(pattern, text)})


class ParsedError(Exception):
    """Raised once a command line has been parsed, before anything is done."""


def test_the_table_of_flags_is_the_generated_one():
    inside = TEXTS["docs/commands.md"].split("<!-- flags -->")[1].split("<!-- /flags -->")[0]
    assert inside.strip() == flags_markdown()


@pytest.mark.parametrize(("page", "path"), found(r"`((?:lm|tests|data|docs|results|examples)/[\w./-]+\.\w+)`"))
def test_a_file_that_is_named_exists(page, path):
    # Some lie in the reader's own folders.
    assert (ROOT / path).exists() or path.startswith("data/")


@pytest.mark.parametrize(("page", "target"), found(r"\]\(((?!https?:)[^)#]+)"))
def test_a_link_leads_somewhere(page, target):
    assert (ROOT / page).parent.joinpath(target).exists()


@pytest.mark.parametrize(("page", "target"), found(r"\]\(((?!https?:)[^)]*#[^)]+)"))
def test_a_link_to_a_section_leads_to_its_heading(page, target):
    path, section = target.split("#")
    text = ((ROOT / page).parent / path if path else ROOT / page).read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert section in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_the_readme_links_every_page_of_the_docs(page):
    assert f"({page})" in TEXTS["README.md"]


@pytest.mark.parametrize(("page", "command"), found(r"python -m (lm\.\w+ [^`\n|]+)"))
def test_a_command_parses(page, command, monkeypatch):
    module, *arguments = shlex.split(command, comments=True)
    if arguments == []:
        return

    def parse(self, *args, **kwargs):
        super(Parser, self).parse_args(*args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(Parser, "parse_args", parse)
    monkeypatch.setattr("sys.argv", [module, *arguments])
    with pytest.raises(ParsedError):
        importlib.import_module(module).main()


def test_every_command_is_in_the_readme_and_in_the_docs():
    commands = {file.stem for file in (ROOT / "lm").glob("*.py")} - {"__init__"}
    for page in ("README.md", "docs/commands.md"):
        assert commands == {name for name in re.findall(r"^\| `python -m lm\.(\w+)", TEXTS[page], re.MULTILINE)}


def test_every_preset_has_a_line_in_the_docs_and_is_named_in_the_readme():
    for name in PRESETS:
        assert f"| `{name}` |" in TEXTS["docs/commands.md"]
        assert f"`{name}`" in TEXTS["README.md"]


@pytest.mark.parametrize("name", PRESETS)
def test_the_docs_give_the_strengths_of_a_presets_penalties(name):
    config = make_config(name, "ptb")
    row = next(line for line in TEXTS["docs/commands.md"].splitlines() if line.startswith(f"| `{name}` |"))
    assert row.split(" | ")[2] == f"{config.alpha:g}, {config.beta:g}"


def test_the_study_in_the_docs_is_what_the_flags_above_it_ask(tmp_path):
    from lm.study.search import check_settings
    from lm.study.specification import load_study

    example, search = re.findall(r"```toml\n(.*?)```", TEXTS["docs/studies.md"], re.DOTALL)
    (tmp_path / "study.toml").write_text(example + search)
    study = load_study(tmp_path)
    check_settings(study, study.refine, study.config())
    assert [(c["alpha"], c["beta"]) for c, _ in study.runs()[:6]] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(study.runs()) == 18
    assert (study.preset, study.flags) == ("examples-200", {"epochs": 1})


def test_every_study_is_read_and_its_runs_are_valid_configurations():
    from lm.study.specification import load_study

    studies = sorted(ROOT.glob("results/**/study.toml"))
    assert studies
    for file in studies:
        study = load_study(file.parent)
        for configuration, seed in study.runs():
            make_config(study.preset, study.dataset, **study.flags | configuration, seed=seed)


def test_requirements_pin_what_the_project_names():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11"
