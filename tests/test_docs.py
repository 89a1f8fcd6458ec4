"""The documentation's commands parse, its Python runs, its promises have files behind them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgespec.cli import build_parser
from edgespec.config import apply_settings, read_settings
from edgespec_export.family import sample_image

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
COMMAND = re.compile(r"(?:^|&& |`)(?:\.venv/bin/)?edgespec ([a-z][^`\n]*)", re.MULTILINE)


def code_of(page: Path) -> str:
    """Fenced and indented code of a page, without its prose."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return "\n".join([*fenced, *indented])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    for words in COMMAND.findall(code_of(page)):
        build_parser()[0].parse_args(shlex.split(words))


def test_readme_shows_commands_at_all() -> None:
    assert len(COMMAND.findall(code_of(ROOT / "README.md"))) >= 3


def test_first_run_is_near_the_top() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert next(i for i, line in enumerate(lines, 1) if "edgespec demo" in line) <= 30


def test_readme_python_runs(builtin_bundle: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    code = code.replace('"llava.bundle"', repr(str(builtin_bundle)))
    code = code.replace('"cat.jpg"', repr(str(sample_image())))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip(), result.stderr


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_tests_that_a_page_names_are_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py"))
    defined = set(re.findall(r"def (test_\w+)", tests))
    for page in PAGES:
        named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
        assert named <= defined, f"{page.name}: {sorted(named - defined)}"


def test_help_ends_with_an_example() -> None:
    for name, parser in build_parser()[1].items():
        assert f"edgespec {name}" in (parser.epilog or "")


def test_settings_files_hold_valid_flags() -> None:
    """Files of devices and models hold figures (test_estimates.py reads them), others are for other
    programs (test_deployments.py)."""
    others = {ROOT / "configs" / name for name in ("devices", "models", "envoy", "kubernetes")}
    files = [file for file in sorted(ROOT.glob("configs/*/*.yaml")) if file.parent not in others]
    assert files
    for file in files:
        commands = build_parser()[1]
        apply_settings(commands[file.parent.name], read_settings(file), str(file))
