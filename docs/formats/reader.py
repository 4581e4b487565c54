#!/usr/bin/env python3
"""Read a Lastro repository without Lastro: list its backups and extract one, from a store folder and a recovery kit.

    reader.py STORE KIT list        or        reader.py STORE KIT extract BACKUP FOLDER      (FOLDER must be new)

The passphrase is in LASTRO_KIT_PASSPHRASE or is asked for. LASTRO_KEYRINGS names the store with the keyrings, if it is
another. Needs cryptography, zstandard, blake3, no index. All is verified; errors end with one line and exit code 1.
"""

import binascii
import getpass
import hashlib
import json
import os
import re
import sqlite3
import stat
import struct
import sys
from decimal import Decimal
from functools import lru_cache, partial
from pathlib import Path
from urllib.parse import quote

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey as Private
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf import argon2, hkdf

KEYS = {  # Per kind of key column the bytes by which rows are sorted.
    "int": lambda field: (int(field) + (1 << 63)).to_bytes(8, "big"),
    "uuid": lambda field: bytes.fromhex(field.decode().replace("-", "")),
    "text": lambda field: field.replace(b"\0", b"\0\xff") + b"\0",
    "hash": lambda field: hashlib.sha256(field).digest(),
}
ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
bare = partial(re.compile(rb"(?s)\\(.)").sub, lambda m: ESCAPES.get(m[1], m[1]))
unzip = zstandard.ZstdDecompressor().decompress


def need(condition, what):
    if not condition:
        raise ValueError(f"not what was written: {what}")


def kdf(secret, salt, info, length=32):
    return hkdf.HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


def canonical(value):  # RFC 8785
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(k)}:{canonical(v)}" for k, v in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, float) and (value == 0 or 1e-6 <= abs(value) < 1e21):
        return str(int(value)) if value == int(value) else format(Decimal(repr(value)), "f")
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"e([+-])0*", r"e\1", text) if isinstance(value, float) else text


class Repository:
    def __init__(self, folder, keyring, root, public_keys):
        def unwrap(text, name):
            blob, context = bytes.fromhex(text), f"keyring:{self.tenant}:{self.id}:{name}".encode()
            return AESGCM(kdf(root, blob[12:44], b"lastro/v1/root\0" + context)).decrypt(bytes(12), blob[44:], context)

        self.folder, ring = folder, json.loads(keyring.read_bytes())
        self.id, self.tenant = ring["repository_id"], ring["tenant_id"]
        names = {"id_keys": "id", "epochs": "epoch", "successors": "successor"}
        made = {a: {int(n): unwrap(x, f"{b}-{n}") for n, x in ring.get(a, {}).items()} for a, b in names.items()}
        self.id_keys, self.epochs = [unwrap(ring["id_key"], "id"), *made["id_keys"].values()], made["epochs"]
        self.signers = {n: json.loads(secret[32:]) for n, secret in made["successors"].items()}
        seeds = {1: unwrap(ring["signing_seed"], "signing"), **made["successors"]}
        self.public = {n: Private.from_private_bytes(seed[:32]).public_key() for n, seed in seeds.items()}
        right = public_keys.get(self.id) in (None, self.public[1].public_bytes_raw().hex()) and ring["version"] < 4
        need(right and self.id == folder.name, f"the keyring in the place of {folder.name}")

    def envelope(self, header, *kinds):  # Opens segments of an object of these kinds: 1, 2 packs, 4, 5 documents.
        magic, version, cipher, kind, epoch, salt, commitment = struct.unpack(">4sBBBxI4x32s32s", header)
        need(magic == b"LSTR" and version == 1 and kind in kinds and cipher in (0, 1), "object header")
        names = [struct.pack(">H", len(name)) + name for name in (self.tenant.encode(), self.id.encode())]
        both = kdf(self.epochs[epoch], salt, b"lastro/v1/object\0" + bytes([kind]), 64)
        need(cipher == 0 or both[32:] == commitment, "key commitment")

        def open_segment(number, sealed, last):
            aad = header + b"".join(names) + struct.pack(">QB", number, last)
            if cipher:
                return AESGCM(both[:32]).decrypt(number.to_bytes(12, "big"), sealed, aad)
            need(hashlib.sha256(aad + sealed[:-16]).digest()[:16] == sealed[-16:], "segment")
            return sealed[:-16]

        return open_segment

    def manifests(self):
        for path in sorted(self.folder.glob("manifests/[0-9]*")):
            blob, step = path.read_bytes(), (1 << 20) + 16
            segment, places = self.envelope(blob[:80], 4, 5), enumerate(range(80, len(blob), step))
            pieces = [segment(n, blob[at : at + step], at + step >= len(blob)) for n, at in places]
            document = json.loads(unzip(b"".join(pieces)))
            bare = {name: value for name, value in document.items() if name not in ("signature", "checksum")}
            bare.get("checksums", {}).pop("manifest", None)
            digest = hashlib.sha256(canonical(bare).encode()).digest()
            epoch, place = max(1, struct.unpack_from(">I", blob, 8)[0]), (document["repository_id"], document["number"])
            signer = self.public[max(n for n in self.public if n <= epoch)]
            signer.verify(bytes.fromhex(document["signature"]), b"lastro manifest v1\0" + digest)
            need(place == (self.id, int(path.name)) and document["version"] == 1, f"place of manifest {path.name}")
            if document["kind"] == "manifest":
                need(self.believed(place[1], epoch, digest.hex()[:32]), f"manifest {path.name}, of a former key,")
                yield document

    def believed(self, number, epoch, pin):  # A former key may be a thief's: only what was there at its end counts.
        later = [self.signers[n] for n in sorted(self.signers) if n > epoch] or [{"since": 0}]
        known = next((dict(key["kept"] + key["ended"]) for key in reversed(later) if "kept" in key), {number: pin})
        return not later[0]["since"] or (number < later[0]["since"] and known.get(number) == pin)

    def find_chunks(self, encrypted):
        base, domain = (self.folder, b"sealed") if encrypted else (self.folder / "plain", b"plain")
        self.chunk_keys = [kdf(key, b"", b"lastro/v1/chunk-id\0" + domain) for key in self.id_keys]
        self.packs = {path.name: path for sort in ("data", "meta") for path in base.glob(f"{sort}/??/*")}
        self.places = sqlite3.connect("")  # A temporary file, so that a large repository needs no large memory.
        self.places.execute("create table place (id blob primary key, pack, frame, size, at, length)")
        for name, path in self.packs.items():
            try:
                self.places.executemany("insert or ignore into place values (?,?,?,?,?,?)", self.trailer(name, path))
            except Exception as error:  # noqa: BLE001 - another pack may hold its chunks.
                print(f"pack {name} is not readable: {error!r}", file=sys.stderr)

    def trailer(self, name, path):
        with open(path, "rb") as pack:
            segment = self.envelope(pack.read(80), 1, 2)
            end = pack.seek(-32, os.SEEK_END)
            offset, length, size = struct.unpack(">IIQ", segment((1 << 64) - 1, pack.read(32), True))
            need(size == end + 32 and pack.seek(offset) == offset, "size")
            table = unzip(segment(offset, pack.read(length), True))
        rows, at = [], 8
        for _ in range(struct.unpack_from(">I", table)[0]):
            frame, size, count = struct.unpack_from(">III", table, at)
            chunks = struct.iter_unpack(">32sII", table[at + 12 : at + 12 + 40 * count])
            rows += [(chunk, name, frame, size, begin, length) for chunk, begin, length in chunks]
            at += 12 + 40 * count
        return rows

    @lru_cache(8)  # noqa: B019 - there is one object for the whole run.
    def frame(self, name, offset, size):
        with open(self.packs[name], "rb") as pack:
            segment = self.envelope(pack.read(80), 1, 2)
            pack.seek(offset)
            plain = segment(offset, pack.read(size), False)
        return unzip(plain[1:]) if plain[0] else plain[1:]

    def get(self, chunk):
        row = self.places.execute("select * from place where id = ?", (chunk,)).fetchone()
        need(row, f"chunk {chunk.hex()} is in no pack")
        data = self.frame(*row[1:4])[row[4] : row[4] + row[5]]
        need(any(blake3(data, key=key).digest() == chunk for key in self.chunk_keys), f"chunk {chunk.hex()}")
        return data

    def join(self, ids):
        return b"".join(self.get(bytes.fromhex(chunk)) for chunk in ids)

    def span_rows(self, ref, kinds):
        span = json.loads(self.join(ref["span"]))
        lines = [line for block in span["blocks"] for line in self.join(block["data"]).split(b"\n")]
        rows = {b"\t".join(line.split(b"\t", len(kinds))[: len(kinds)]): line for line in lines}
        for delta in span["deltas"]:
            head, _, leaf = self.join(delta["leaf"]).partition(b"\n")
            first, second = (int(length) for length in head.split(b" ")[:2])
            upserts = iter(self.join(delta["data"]).split(b"\n"))
            for size, line in zip(leaf[:first].split(b","), leaf[first : first + second].split(b"\n"), strict=True):
                key = line.partition(b"\t")[2]
                rows[key] = next(upserts) if size != b"0" else None
        found = [item for item in rows.items() if item[1] is not None]
        need(len(found) == ref["rows"], "span of a table")
        found.sort(key=lambda r: b"".join(KEYS[k](bare(f)) for k, f in zip(kinds, r[0].split(b"\t"), strict=True)))
        return found

    def extract_table(self, node, path):
        kinds, synthetic = node["key"]["kinds"], node["key"]["synthetic"]
        digest, bucket, in_bucket, count = hashlib.sha256(), hashlib.sha256(), 0, 0
        with open(path, "xb") as out:
            out.write("\t".join(column["name"] for column in node["columns"]).encode() + b"\n")
            for ref in (ref for ids in node["lists"] for ref in json.loads(self.join(ids))):
                for key, row in self.span_rows(ref, kinds):
                    out.write((row.split(b"\t", synthetic)[synthetic] if synthetic else row) + b"\n")
                    bucket.update(row + b"\n")
                    count, in_bucket = count + 1, in_bucket + 1
                    if not binascii.crc32(key) & 31 or in_bucket == 256:
                        digest.update(bucket.digest())
                        bucket, in_bucket = hashlib.sha256(), 0
        digest.update(bucket.digest() if in_bucket else b"")
        need((count, digest.hexdigest()) == (node["rows"], node["sha256"]), f"table {node['name']}")

    def refs(self, chunk, magic, record):
        data = self.get(chunk)
        need(data[:4] == magic, "tree")
        return [data[at : at + 32] for at in range(8, 8 + record * struct.unpack_from("<I", data, 4)[0], record)]

    def entries(self, node):
        lists = self.refs(bytes.fromhex(node["root"]), b"LTR1", 40)
        for leaf in (leaf for chunk in lists for leaf in self.refs(chunk, b"LTN1", 100)):
            data, at, parts = self.get(leaf), 20, []
            magic, entries, names, id_count, extras = struct.unpack_from("<4sIIII", data)
            for length in (names, 56 * entries, 32 * entries, 4 * entries, 32 * id_count, extras):
                parts.append(data[at : at + length])
                at += length
            need(magic == b"LTL1" and at == len(data), "leaf")
            begin, table, stats = 0, json.loads(parts[5] or b"{}"), struct.iter_unpack("<IIIIQqqQQ", parts[1])
            for n, (path, fields) in enumerate(zip(parts[0].split(b"\0"), stats, strict=True)):
                end = begin + 32 * struct.unpack_from("<I", parts[3], 4 * n)[0]
                content = [parts[4][k : k + 32] for k in range(begin, end, 32)]
                begin, extra = end, table.get(str(n), {})
                if extra.get("lists"):
                    packed = b"".join(map(self.get, content))
                    content = [packed[k : k + 32] for k in range(0, len(packed), 32)]
                yield path, fields, parts[2][32 * n : 32 * n + 32], content, extra

    def write_file(self, target, size, ids, extra):
        extents, pieces, held = self.join(extra.get("extents_chunks", ())), map(self.get, ids), b""
        with open(target, "xb") as out:
            for offset, length in list(struct.iter_unpack("<QQ", extents)) or extra.get("extents", [[0, size]]):
                out.seek(offset)
                while length:
                    held = held or next(pieces)
                    piece, held = held[:length], held[length:]
                    length -= out.write(piece)
            out.truncate(size)
        need(not held and not next(pieces, b""), f"length of {target!r}")

    def extract_tree(self, node, top):
        metadata, folders, links = [], set(), {}
        for path, (mode, uid, gid, count, size, mtime, _, inode, device), digest, ids, extra in self.entries(node):
            target, (parent, _, name) = os.path.join(top, path).rstrip(b"/"), path.rpartition(b"/")
            need(path == b"" or (parent in folders and name not in (b"", b".", b"..")), f"path {path!r}")
            if stat.S_ISDIR(mode):
                os.mkdir(target)
                folders.add(path)
            elif stat.S_ISLNK(mode):
                os.symlink(binascii.a2b_base64(extra["target"]), target)
            elif not stat.S_ISREG(mode):
                print(f"left out, no file, folder or link: {path!r}", file=sys.stderr)
            elif count > 1 and links.setdefault((device, inode, digest), target) != target:
                os.link(links[device, inode, digest], target)
            else:
                self.write_file(target, size, ids, extra)
            if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                metadata.append((target, mode, uid, gid, int(extra.get("mtime", mtime))))
        for target, mode, uid, gid, mtime in reversed(metadata):  # Folders after what they hold.
            os.chown(target, *((uid, gid) if os.geteuid() == 0 else (-1, -1)))
            os.chmod(target, stat.S_IMODE(mode))
            os.utime(target, ns=(mtime, mtime))

    def extract(self, manifest, folder):
        folder.mkdir(parents=True)
        self.find_chunks(manifest["metadata"]["encrypted"])
        for source in manifest["sources"]:
            for node in (*source["trees"], *source["tables"], *source["documents"]):
                target = folder / quote(source["name"], safe="") / quote(node["name"], safe="")
                target.parent.mkdir(parents=True, exist_ok=True)
                if "root" in node:
                    self.extract_tree(node, os.fsencode(target))
                elif "lists" in node:
                    self.extract_table(node, target.with_name(target.name + ".copy"))
                else:
                    target.write_bytes(self.join(node["chunks"]))


def main(store, kit, verb, backup=None, folder=None):
    doing = f"{kit} does not open: the passphrase is another, or it is no kit"
    try:
        held, passphrase = json.loads(Path(kit).read_bytes()), os.environ.get("LASTRO_KIT_PASSPHRASE")
        need(held["format"] == "lastro-recovery-kit" and held["version"] == 1, "kit")
        salt, nonce, sealed = map(bytes.fromhex, (held["kdf"]["salt"], held["nonce"], held["root_key"]))
        cost = {name: held["kdf"][name] for name in ("iterations", "lanes")}
        argon = argon2.Argon2id(salt=salt, length=32, memory_cost=held["kdf"]["memory_kib"], **cost)
        key = argon.derive((passphrase or getpass.getpass("passphrase: ")).encode())
        root = bytes.fromhex(AESGCM(key).decrypt(nonce, sealed, b"lastro recovery kit v1").decode().split(":")[1])
        public_keys = {row["repository_id"]: row["public_key"] for row in held["repositories"]}
        doing = f"{kit} does not fit {store}"
        rings = sorted(Path(os.environ.get("LASTRO_KEYRINGS", store)).glob("r/*/keyring"))
        repositories = [Repository(Path(store, "r", ring.parent.name), ring, root, public_keys) for ring in rings]
        doing = f"cannot {verb}"
        for repository in repositories:
            for manifest in repository.manifests():
                if verb == "list":
                    shown = [manifest[name] for name in ("id", "timestamp", "type", "tenant_id")]
                    print(*shown, ",".join(source["name"] for source in manifest["sources"]), sep="\t")
                elif manifest["id"] == backup:
                    sys.exit(repository.extract(manifest, Path(folder)))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - one line for a person, whatever it is.
        sys.exit(f"{doing} ({type(error).__name__}: {error})")
    if backup or not repositories:
        sys.exit(f"{store} holds no {f'backup {backup}' if repositories else 'repository; is it the right folder?'}")


if __name__ == "__main__":
    main(*sys.argv[1:]) if [*sys.argv[3:4], len(sys.argv)] in (["list", 4], ["extract", 6]) else sys.exit(__doc__)
