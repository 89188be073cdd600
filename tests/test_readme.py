"""The README says what the program does: its table of flags, its files and its commands."""

import re
import tomllib
from pathlib import Path

import pytest

from lm.config.flags import build_parser, flags_markdown
from lm.config.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_flags_is_the_generated_one():
    inside = README.split("<!-- flags -->")[1].split("<!-- /flags -->")[0]
    assert inside.strip() == flags_markdown()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:lm|tests|data|results)/[\w./-]+\.\w+)`", README))))
def test_a_file_that_is_named_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m lm\.train ([^`\n]*--[^`\n]*)", README))))
def test_a_training_command_parses(command):
    build_parser("x").parse_args(command.split("#")[0].split())


def test_every_preset_has_a_line_in_the_readme():
    assert all(f"`{name}`" in README for name in PRESETS)


def test_every_study_is_read_and_its_runs_are_valid_configurations():
    from lm.config.values import make_config
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
