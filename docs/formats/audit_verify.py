"""Verify an export of Lastro's audit log against signed checkpoints, with nothing of Lastro's.

    python audit_verify.py --key VKEY EXPORT.ndjson CHECKPOINT…

EXPORT is `audit export --format ndjson` (several files are read one after the other: what truncations have exported,
then the rest). A CHECKPOINT is a file with one note or many (`audit checkpoints --notes`), or a folder of them (a
witness). VKEY is the public key as `audit checkpoint` prints it, kept since it was first seen; several may be given.
Finds any change, deletion, reordering, duplicate or truncation up to the newest checkpoint. Exit code 0: whole, 7: not.
Needs Python 3.11 and `cryptography`; the format is described in audit-log.md.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FINDINGS_MAX = 50


# RFC 8785 (JSON as the hashes see it)
def canonical(value: Any) -> str:
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(canonical(each) for each in value) + "]"
    if isinstance(value, float):
        return number(value)
    return json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    digits, _, exponent = repr(value).partition("e")
    return digits if not exponent else f"{digits.removesuffix('.0')}e{int(exponent):+d}"


# RFC 9162 (the tree)
def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(peaks: list[bytes]) -> bytes:
    if not peaks:
        return hashlib.sha256().digest()
    tree = peaks[-1]
    for peak in reversed(peaks[:-1]):
        tree = node(peak, tree)
    return tree


def append(peaks: list[bytes], size: int, leaf: bytes) -> None:
    while size & 1:
        leaf = node(peaks.pop(), leaf)
        size >>= 1
    peaks.append(leaf)


# C2SP signed notes (the checkpoints)
class Note:
    """A note whose signature one of the keys has made; ValueError for any other."""

    def __init__(self, text: str, keys: dict[bytes, tuple[str, bytes]]) -> None:
        self.text, _, line = text.rstrip("\n").rpartition("\n\n")
        self.text += "\n"
        origin, size, root_text, *self.lines = self.text.rstrip("\n").split("\n")
        _, name, encoded = line.split(" ")
        blob = base64.b64decode(encoded, validate=True)
        key_name, public = keys.get(blob[:4], ("", b""))
        if not public or name != origin or key_name != origin:
            raise ValueError("a checkpoint was signed by another key than the one given")
        Ed25519PublicKey.from_public_bytes(public).verify(blob[4:], self.text.encode())
        self.origin, self.size, self.root = origin, int(size), base64.b64decode(root_text)

    def line(self, name: str) -> str:
        return next((line.partition(" ")[2] for line in self.lines if line.partition(" ")[0] == name), "")


def keys_read(texts: list[str]) -> dict[bytes, tuple[str, bytes]]:
    keys = {}
    for text in texts:
        name, hashed, encoded = text.split("+", 2)
        public = base64.b64decode(encoded)[1:]
        if hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4].hex() != hashed:
            raise SystemExit(f"{text[:60]!r} is no verifier key: its parts do not belong together")
        keys[bytes.fromhex(hashed)] = (name, public)
    return keys


def notes_read(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            text = file.read_text(encoding="utf-8")
            blocks = [block.strip("\n") for block in text.split("\n\n") if block.strip("\n")]
            yield from (f"{blocks[at]}\n\n{blocks[at + 1]}\n" for at in range(0, len(blocks) - 1, 2))


class Log:
    def __init__(self, keys: dict[bytes, tuple[str, bytes]]) -> None:
        self.keys, self.findings, self.peaks = keys, list[str](), list[bytes]()
        self.first = self.size = 0
        self.begun = self.broken = False
        self.truncations: dict[int, Note] = {}

    def wrong(self, what: str) -> None:
        self.broken = True
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(what)

    def begin(self, entries: Path, sequence: int) -> None:
        """A log that does not begin with entry 0 says in a signed note of its own what went before."""
        self.begun, self.first, self.size = True, sequence, sequence
        if sequence == 0:
            return
        note = self.truncation(entries, sequence)
        if note is None:
            self.wrong(f"entries 0 to {sequence - 1} are missing, and no signed truncation accounts for them")
            return
        blob = base64.b64decode(note.line("frontier"))
        self.peaks = [blob[at : at + 32] for at in range(0, len(blob), 32)]
        if root(self.peaks) != note.root or len(self.peaks) != sequence.bit_count():
            self.wrong("the signed truncation does not give its own root")

    def truncation(self, entries: Path, upto: int) -> Note | None:
        with entries.open(encoding="utf-8") as lines:
            for line in lines:
                if '"audit.truncated"' in line and json.loads(line)["data"].get("upto") == upto:
                    with contextlib.suppress(ValueError, KeyError, InvalidSignature):
                        note = Note(json.loads(line)["data"]["note"], self.keys)
                        return note if note.size == upto else None
        return None

    def take(self, entry: dict[str, Any]) -> bytes:
        sequence, leaf, rooted = entry["sequence"], entry.pop("leaf_hash"), entry.pop("root_hash")
        if sequence != self.size:
            self.wrong(f"entry {sequence} stands where entry {self.size} should")
            self.size = max(self.size, sequence)
        found = hashlib.sha256(b"\x00" + canonical(entry).encode()).digest()
        if found.hex() != leaf:
            self.wrong(f"entry {sequence} was altered")
        append(self.peaks, self.size, found) if not self.broken else None
        self.size += 1
        if not self.broken and root(self.peaks).hex() != rooted:
            self.wrong(f"the root stored with entry {sequence} does not follow from the entries")
        return root(self.peaks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", action="append", required=True, metavar="VKEY")
    parser.add_argument("files", nargs="+", type=Path, metavar="EXPORT.ndjson… CHECKPOINT…")
    options = parser.parse_args()
    exports = [path for path in options.files if path.suffix == ".ndjson"]
    log, notes = Log(keys_read(options.key)), list[Note]()
    for text in notes_read([path for path in options.files if path not in exports]):
        try:
            notes.append(Note(text, log.keys))
        except (ValueError, InvalidSignature) as error:
            log.wrong(str(error) or "the signature of a checkpoint is not valid")
    log.broken = False
    due = {note.size: note for note in notes}
    met = 0
    for path in exports:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    log.begun or log.begin(exports[-1], entry["sequence"])
                    at = log.take(entry)
                except (ValueError, KeyError, TypeError, AttributeError):
                    log.wrong(f"what stands where entry {log.size} should is no entry")
                    continue
                if log.size in due and not log.broken:
                    met += 1
                    if due[log.size].root != at:
                        log.wrong(f"the checkpoint of {log.size} entries has another root")
    newest = max(due, default=0)
    if not newest:
        log.wrong("there is no valid checkpoint: nothing says how long the log is")
    elif newest > log.size:
        log.wrong(f"a checkpoint has seen {newest} entries, the export ends with {log.size}: the end was cut off")
    for finding in log.findings:
        sys.stderr.write(f"{finding}\n")
    said = "NOT WHOLE" if log.findings else "whole"
    sys.stdout.write(f"{said}: {log.size} entries from {log.first}, {met} checkpoints met, covered up to {newest}\n")
    return 7 if log.findings else 0


if __name__ == "__main__":
    sys.exit(main())
