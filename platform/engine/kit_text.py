"""The recovery kit on paper: the root key under a passphrase, in lines that can be typed by hand.

A line is its number, five groups of four characters, and two check characters; a wrong line is named by its number. The
characters are Crockford's base 32 (no I, L, O, U; case does not matter, o is read as 0, i and l as 1). What the lines
hold, one after another (docs/formats/repository.md, "Recovery kit on paper"):

    0   1  version (1)
    1   1  iterations of Argon2id
    2   1  lanes
    3   1  memory, as the power of two of KiB
    4   8  id of the root key
    12  16 salt
    28  12 nonce
    40  48 AES-256-GCM of the root key's 32 bytes
    88  2  the first two bytes of the SHA-256 of all before
"""

import hashlib
import os
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from engine.errors import ObjectDamaged, RepositoryNewer, WrongKey
from engine.keys import KEY_BYTES, RootKey
from engine.kit import passphrase_checked

VERSION = 1
_ITERATIONS, _LANES, _MEMORY_POWER = 3, 4, 16  # RFC 9106, second recommended option: 64 MiB.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ = str.maketrans({"O": "0", "I": "1", "L": "1"})
_GROUP, _GROUPS = 4, 5
_LINE_CHARS = _GROUP * _GROUPS
_PAYLOAD_BYTES = 88
_BYTES = _PAYLOAD_BYTES + 2
_CHARS = _BYTES * 8 // 5
_LINES = -(-_CHARS // _LINE_CHARS)
_CONTEXT = b"lastro recovery kit on paper v1"
_LINE = re.compile(r"^\W*(\d\d)[ .:]+((?:[0-9A-Za-z]{4}[ -]+){5})([0-9A-Za-z]{2})\W*$", re.MULTILINE)


def kit_lines(root: RootKey, passphrase: str) -> list[str]:
    """The lines to print: `01  ABCD EFGH JKMN PQRS TVWX  7K`. Raises UsageError for a short passphrase."""
    passphrase_checked(passphrase)
    salt, nonce = os.urandom(16), os.urandom(12)
    head = bytes([VERSION, _ITERATIONS, _LANES, _MEMORY_POWER]) + bytes.fromhex(root.key_id)
    sealed = _aead(passphrase, salt, _ITERATIONS, _LANES, _MEMORY_POWER).encrypt(
        nonce, root.secret_bytes(), _CONTEXT + head
    )
    payload = head + salt + nonce + sealed
    assert len(payload) == _PAYLOAD_BYTES
    text = _encode(payload + hashlib.sha256(payload).digest()[:2])
    return [
        _line(number, text[at : at + _LINE_CHARS])
        for number, at in enumerate(range(0, len(text), _LINE_CHARS), start=1)
    ]


def has_kit_lines(text: str) -> bool:
    """Whether this is a kit on paper, typed or as the page that was printed."""
    return _LINE.search(text) is not None


def kit_open_lines(text: str, passphrase: str) -> RootKey:
    """The root key. Raises ObjectDamaged naming the line that was mistyped, WrongKey, RepositoryNewer."""
    blob = _decode(_lines(text))
    payload, check = blob[:_PAYLOAD_BYTES], blob[_PAYLOAD_BYTES:]
    if hashlib.sha256(payload).digest()[:2] != check:
        raise ObjectDamaged("the lines do not belong together", hint="are all of them from one page, in its order?")
    version, iterations, lanes, power = payload[:4]
    if version > VERSION:
        raise RepositoryNewer(f"a recovery kit on paper of version {version} is newer than {VERSION}")
    if not (1 <= iterations <= 100 and 1 <= lanes <= 64 and 3 <= power <= 22):
        raise ObjectDamaged("this is no readable recovery kit")
    aead = _aead(passphrase, payload[12:28], iterations, lanes, power)
    try:
        secret = aead.decrypt(payload[28:40], payload[40:], _CONTEXT + payload[:12])
    except InvalidTag:
        raise WrongKey("the passphrase does not open this kit", hint="or another kit's lines were typed") from None
    return RootKey(secret)


def _aead(passphrase: str, salt: bytes, iterations: int, lanes: int, power: int) -> AESGCM:
    kdf = Argon2id(salt=salt, length=KEY_BYTES, iterations=iterations, lanes=lanes, memory_cost=1 << power)
    return AESGCM(kdf.derive(passphrase.encode()))


def _encode(data: bytes) -> str:
    assert len(data) == _BYTES
    assert not _BYTES * 8 % 5
    value = int.from_bytes(data, "big")
    text = "".join(_ALPHABET[value >> shift & 31] for shift in range((_CHARS - 1) * 5, -1, -5))
    return text.ljust(_LINES * _LINE_CHARS, "0")


def _decode(text: str) -> bytes:
    value = 0
    for character in text[:_CHARS]:
        value = value << 5 | _ALPHABET.index(character)
    return value.to_bytes(_BYTES, "big")


def _check(number: int, characters: str) -> str:
    """Ten bits of a hash: of a thousand mistyped lines one is not noticed here, and then by the check over all."""
    digest = hashlib.sha256(b"%d:%s" % (number, characters.encode())).digest()
    value = int.from_bytes(digest[:2], "big") >> 6
    return _ALPHABET[value >> 5] + _ALPHABET[value & 31]


def _line(number: int, characters: str) -> str:
    groups = " ".join(characters[at : at + _GROUP] for at in range(0, _LINE_CHARS, _GROUP))
    return f"{number:02d}  {groups}  {_check(number, characters)}"


def _lines(text: str) -> str:
    """The characters of all lines in order, each line checked."""
    found: dict[int, str] = {}
    for number_text, groups, check in _LINE.findall(text):
        number = int(number_text)
        characters = re.sub("[ -]", "", groups).upper().translate(_READ)
        foreign = sorted(set(characters) - set(_ALPHABET))
        if foreign:
            raise ObjectDamaged(f"line {number} of the kit has a character that is in none: {foreign[0]}")
        if _check(number, characters) != check.upper().translate(_READ):
            raise ObjectDamaged(
                f"line {number} of the kit was mistyped: its check characters do not fit", hint="type that line again"
            )
        if found.setdefault(number, characters) != characters:
            raise ObjectDamaged(f"line {number} of the kit is there twice and differs", hint="remove the wrong one")
    missing = [number for number in range(1, _LINES + 1) if number not in found]
    if missing:
        raise ObjectDamaged(
            f"line {missing[0]} of the kit is missing or not whole",
            hint=f"there are {_LINES}: a number, five groups of four characters, two check characters",
        )
    return "".join(found[number] for number in range(1, _LINES + 1))
