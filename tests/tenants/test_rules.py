"""Names that may be given, and those that may not."""

import pytest

from engine.errors import UsageError
from tenants.commanding import settings_of, time_of
from tenants.rules import name_checked, slug_checked, tags_checked, title_checked


@pytest.mark.parametrize("slug", ["a", "h3", "hotel-aurora", "0", "a" * 50, "a--b"])
def test_slugs_that_may_be_given(slug: str) -> None:
    """Goal: ordinary slugs pass; check a handful."""
    assert slug_checked(slug) == slug


@pytest.mark.parametrize(
    "slug", ["", "A", "-a", "a-", "a_b", "a.b", "a/b", "../a", "a\n", "ü", "a" * 51, "general", "all", "a b", "a\0"]
)
def test_slugs_that_may_not(slug: str) -> None:
    """Goal: a slug is safe in paths, addresses and confirmations; try what is not."""
    with pytest.raises(UsageError) as caught:
        slug_checked(slug)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "a.b", "a/b", ".", "..", "-x", "a b", "a\n", "é", "x" * 51])
def test_source_names_cannot_steer_paths_or_targets(name: str) -> None:
    """Goal: a source's name is a folder and the left side of SOURCE.KEY=VALUE; try what would break either."""
    with pytest.raises(UsageError):
        name_checked("source", name)


@pytest.mark.parametrize("title", ["", "  ", "a\nb", "x" * 201, "bell\a"])
def test_titles_are_one_printable_line(title: str) -> None:
    """Goal: a name shows as it is; try what does not."""
    with pytest.raises(UsageError):
        title_checked(title)


def test_tags_lose_repeats_and_keep_their_order() -> None:
    """Goal: a tag counts once; give one twice."""
    assert tags_checked(["b", "a", "b"]) == ["b", "a"]


@pytest.mark.parametrize("tags", [["a b"], [""], ["x" * 51], [f"t{n}" for n in range(21)], ["-a"]])
def test_tags_that_may_not_be_given(tags: list[str]) -> None:
    """Goal: tags stay short and few; try others."""
    with pytest.raises(UsageError):
        tags_checked(tags)


def test_settings_given_twice_are_lines_of_a_list() -> None:
    """Goal: lists can be given on a command line; repeat a key."""
    assert settings_of(["path=/a=b", "exclude=x", "exclude=y"]) == {"path": "/a=b", "exclude": "x\ny"}


@pytest.mark.parametrize("text", ["path", "=x", ""])
def test_settings_need_key_and_value(text: str) -> None:
    """Goal: a slip is a usage error; leave a half out."""
    with pytest.raises(UsageError):
        settings_of([text])


def test_times_without_an_offset_are_utc() -> None:
    """Goal: one meaning for each time; give the same instant three ways."""
    at = time_of("2026-11-22T08:00:00Z")
    assert at == time_of("2026-11-22T08:00:00") == time_of("2026-11-22T09:00:00+01:00")
    with pytest.raises(UsageError):
        time_of("yesterday")
