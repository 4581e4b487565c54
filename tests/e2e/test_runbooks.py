"""What the runbooks tell an operator to type brings everything back."""

import pytest

from tests.e2e.runbooks import CASES, FOLDER, TOOK, Site, walk

PARTS = ("| target |", "| contact |", "## Values", "## Steps", "## Check list", "- [ ]")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("runbooks"))


@pytest.mark.parametrize("name", CASES)
def test_the_runbook_works(name: str, site: Site) -> None:
    """Goal: nobody improvises at night. Method: lose it for real, run the page's commands, compare every byte and row."""
    walk(name, site)


def test_every_runbook_is_run_and_whole() -> None:
    """Goal: no page without its test, none without targets, contacts, steps, figures and a check list; look at all."""
    pages = {path.stem: path.read_text() for path in FOLDER.glob("*.md") if path.stem != "README"}
    assert set(pages) == set(CASES)
    for name, page in pages.items():
        assert [part for part in PARTS if part not in page] == [], name
        assert TOOK.search(page), name
        assert f"({name}.md)" in (FOLDER / "README.md").read_text()
