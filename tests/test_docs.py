"""The written pages: few enough words, commands that exist, settings that exist, links that lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from dreamer4 import hub
from dreamer4.config import load, override
from dreamer4.errors import InputError
from dreamer4_cli.app import app


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MANUALS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "examples" / "luanti" / "README.md"]
MADE = re.compile(r"(reference|worlds)/[\w/]*\.md|equations\.md")  # by docs/site.py
SAMPLES = {"N": "1", "H": "1", "T": "1", "RUN...": "RUN"}  # what stands for a number, or for more of the same


def commands():
    """Yields page, words, and whether the line is whole, of each command in a block or in a phrase."""
    for page in MANUALS:
        text = page.read_text()
        blocks = re.findall(r"^(?: {4}|\w*\$ ?)?(dreamer4 (?:[^\n]*\\\n)*[^\n]*)$", text, re.M)
        for whole, found in ((True, blocks), (False, re.findall(r"`(dreamer4 [^`]+)`", text))):
            for line in found:
                line = re.sub(r"\s+", " ", line.replace("\\\n", " ")) if not whole else line.replace("\\\n", " ")
                words = shlex.split(line, comments=True)[1:]
                if words and words[0] != "bench":  # of commits before there were studies
                    yield pytest.param(whole, words, id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize(("whole", "words"), list(commands()))
def test_every_command_is_one_that_exists(whole, words, monkeypatch):
    monkeypatch.setattr(hub, "local", Path)  # nothing is fetched
    command, words = typer.main.get_command(app), [SAMPLES.get(word, word) for word in words]
    settings = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set" and "=" in words[i + 1]]
    while words and words[0] in ("--import", "--compile-cache"):
        words = words[2:]
    while (inside := getattr(command, "commands", None)) is not None and words and words[0].isalpha():
        if words[0].isupper():  # COMMAND
            return
        command, words = inside[words[0]], words[1:]
    try:
        if getattr(command, "commands", None) is None:
            command.make_context(command.name, [word for word in words if word != "..."])
    except (typer.Exit, InputError):  # --help, or a path that is not here
        pass
    except Exception as error:
        if whole or "Missing" not in str(error):
            raise
    known = [text for text in settings if not text.startswith(("a.b", "A.B"))]
    if known and all("tokenizer.patch" not in text and "mesh" not in text for text in known):
        preset = words[words.index("--preset") + 1] if "--preset" in words else "catch"
        override(load(preset), [text.replace("=DATA", "=x") for text in known])


def test_every_link_of_a_page_leads_to_a_file():
    for page in MANUALS:
        for place in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert MADE.fullmatch(place) or (page.parent / place).exists(), f"{page}: {place}"


def test_the_pages_are_short():
    words = {page.name: len(page.read_text().split()) for page in [*PAGES, ROOT / "CONTRIBUTING.md"]}
    assert words.pop("CONTRIBUTING.md") <= 600
    assert words["README.md"] <= 900
    assert sum(words.values()) <= 12_000
