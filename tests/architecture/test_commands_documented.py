"""What the documents tell an operator to type is what the program takes."""

import re
import shlex
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

import connectors
import stores
from engine.adapters import parse_config
from engine.errors import UsageError
from tenants.commanding import settings_of
from tests.architecture.source import ROOT, none

PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("guide", "keys", "alerts")))
LOOSE = tuple(ROOT / "docs" / f"{name}.md" for name in ("copies", "retention", "recovery", "stores"))
"""Pages with lines in which `…` stands for what the reader knows: those are passed over."""
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


def _lines(page: Path) -> list[list[str]]:
    """Every `lastro …` of a page's shell blocks, and of the code in its text, as words."""
    text = page.read_text()
    typed = [
        part
        for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", " ").splitlines()
        for part in re.split(r"&&|\|", line)
    ]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    said = [" ".join(code.split()) for code in re.findall(r"`(lastro [^`]*)`", prose)]
    # A verb that is only named, as in "then `lastro kit import`", may lack what it takes: its help has to exist.
    said = [f"{code} --help" if len(code.split()) <= 3 else code for code in said]
    lines = [shlex.split(line, comments=True) for line in [*typed, *said]]
    return [words for line in lines if "lastro" in (words := _bare(line))[:1]]


def _bare(words: list[str]) -> list[str]:
    """The words without the variables set for this command alone."""
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    return words


def _parse(words: list[str]) -> None:
    """Let the command's own parser take the line."""
    noun, *rest = words[1:]
    if noun in ("help", "NOUN"):
        return
    command = load_command_class(get_commands()[noun], noun)
    verbs = getattr(command, "verbs", ())
    names = {name for verb in verbs for name in (verb.name, *verb.aliases)}
    default = getattr(command, "default_verb", "")
    if verbs and default and (not rest or rest[0] not in names):
        rest = [default, *rest]
    try:
        options = command.create_parser("lastro", noun).parse_args(rest)
    except SystemExit as ended:
        if ended.code:
            raise UsageError("the parser ended the program") from ended
        return  # its help was asked for, and is there
    if noun in ("source", "store") and options.verb == "add":
        registry = connectors.load_all() if noun == "source" else stores.load_all()
        parse_config(registry.get(options.kind).Config, settings_of(options.set))


@pytest.mark.parametrize("page", [*PAGES, *LOOSE], ids=lambda page: page.name)
def test_every_documented_command_is_accepted(page: Path) -> None:
    """Goal: what is copied from a document works; give each line to the parser of its command."""
    lines = [line for line in _lines(page) if page not in LOOSE or "…" not in "".join(line)]
    assert len(lines) > 10
    refused = []
    for words in lines:
        try:
            _parse(words)
        except Exception as error:
            refused.append(f"{' '.join(words)}: {error}")
    none(refused, f"{page.name} says what the program does not take")


@pytest.mark.parametrize("kind", [adapter.kind for adapter in connectors.load_all()])
def test_the_guide_has_every_setting_of_every_source(kind: str) -> None:
    """Goal: nothing has to be guessed; look for each field of the kind in its section of the guide."""
    guide = (ROOT / "docs" / "guide.md").read_text()
    section = re.search(rf"^### {kind}\n(.*?)(?=^##)", guide, flags=re.DOTALL | re.MULTILINE)
    assert section, f"docs/guide.md has no section {kind}"
    fields = connectors.load_all().get(kind).Config.__dataclass_fields__
    none([name for name in fields if f"`{name}`" not in section[1]], "describe these settings in docs/guide.md")


def test_every_noun_is_listed() -> None:
    """Goal: whoever looks for a verb finds its noun; compare the table of docs/README.md with the program's commands."""
    page = (ROOT / "docs" / "README.md").read_text().partition("## The nouns of the command line")[2]
    ours = {name for name in get_commands() if hasattr(load_command_class(get_commands()[name], name), "verbs")}
    none(sorted(each for each in ours if f"`{each}`" not in page), "name these nouns in docs/README.md")
