"""The kit on paper: what is typed wrong is named, what is typed right opens."""

import random

import pytest

from engine.errors import ObjectDamaged, UsageError, WrongKey
from engine.keys import RootKey
from engine.kit_text import has_kit_lines, kit_lines, kit_open_lines

PASSPHRASE = "five words that nobody guesses"
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@pytest.fixture(scope="module")
def printed() -> tuple[RootKey, list[str]]:
    root = RootKey.generate()
    return root, kit_lines(root, PASSPHRASE)


def test_typed_lines_give_the_root_key(printed: tuple[RootKey, list[str]]) -> None:
    """Goal: paper is enough. Method: type as people do: small letters, o and l for digits, dots, a page around it."""
    root, lines = printed
    assert len(lines) == 8
    assert all(len(line) <= 40 for line in lines)
    text = "\n".join(lines)
    for typed in (
        text,
        text.lower().replace("0", "o").replace("o1 ", "01 ", 1).replace("1", "l").replace("ol ", "01 "),
        "\r\n".join(f"   {line[:2]}.  {line[4:]}  " for line in reversed(lines)),
        f"<pre>\n{text}\n</pre>",
    ):
        typed = "\n".join(
            f"{line.strip()[:2].replace('o', '0').replace('l', '1')}{line.strip()[2:]}" for line in typed.splitlines()
        )
        assert kit_open_lines(typed, PASSPHRASE).to_text() == root.to_text()
    with pytest.raises(WrongKey):
        kit_open_lines(text, PASSPHRASE + "x")
    with pytest.raises(UsageError):
        kit_lines(root, "short")
    assert not has_kit_lines('{"format": "lastro-recovery-kit"}')


@pytest.mark.seeded
def test_a_mistyped_line_is_named(printed: tuple[RootKey, list[str]], rng: random.Random) -> None:
    """Goal: nobody types all of it again. Method: one wrong, one swapped, one left out, in lines of all numbers."""
    _, lines = printed
    for number in range(8):
        line = lines[number]
        at = rng.choice([n for n in range(4, 28) if line[n] != " "])
        other = rng.choice([c for c in _ALPHABET if c != line[at]])
        swapped = (
            next(n for n in range(4, 27) if " " not in line[n : n + 2] and line[n] != line[n + 1]) if number < 7 else 4
        )
        for wrong in (
            line[:at] + other + line[at + 1 :],
            line[:swapped] + line[swapped + 1] + line[swapped] + line[swapped + 2 :],
            "",
        ):
            if wrong == line:
                continue
            typed = "\n".join([*lines[:number], wrong, *lines[number + 1 :]])
            with pytest.raises(ObjectDamaged, match=f"line {number + 1} of the kit"):
                kit_open_lines(typed, PASSPHRASE)


def test_lines_of_two_kits_do_not_mix(printed: tuple[RootKey, list[str]]) -> None:
    """Goal: no silent nonsense; take half of the lines from another kit."""
    root, lines = printed
    other = kit_lines(root, PASSPHRASE)
    with pytest.raises(ObjectDamaged, match="do not belong together"):
        kit_open_lines("\n".join([*lines[:4], *other[4:]]), PASSPHRASE)
