"""The page that walks an incident says what the program does."""

from pathlib import Path

from tests.e2e.incident import PAGE, commands, prepared, settled


def test_the_incident_page_is_true(tmp_path: Path) -> None:
    """Goal: an operator can follow the page at three in the morning; run its commands and compare what they print."""
    walk = prepared(tmp_path)
    page, found = [], []
    for command, output in commands(PAGE.read_text()):
        said = walk.run(command)
        walk.match(output, said)
        page.append(f"$ {command}\n{output}")
        for theirs, ours in walk.names.items():
            command = command.replace(theirs, ours)
        found.append(f"$ {command}\n{said}")
    assert settled("".join(found)) == settled("".join(page))
    assert (tmp_path / "boreal-case-12.html").read_text().startswith("<!doctype html>")
