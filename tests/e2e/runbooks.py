"""Runs the commands of docs/runbooks/ on real losses; `python -m tests.e2e.runbooks` writes how long each took into its page."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.program import COMMAND_SECONDS_MAX, ROOT, Program, tree

FOLDER = ROOT / "docs" / "runbooks"
PASSPHRASE = "five words that nobody guesses"
TENANTS = ("acme", "globex")
ROWS = 2_000
_BLOCK = re.compile(r"^( *)```sh\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
_VALUE = re.compile(r"^(export )?([A-Z_]+)=(.*)$")
TOOK = re.compile(r"In the test this took \*\*(\d+) s\*\*")


def script(page: str, values: Mapping[str, str]) -> str:
    """All commands of a page in order; values that its reader fills in are those of the test."""
    lines = []
    for indent, block in _BLOCK.findall(page):
        for line in block.splitlines():
            bare = line.removeprefix(indent)
            found = _VALUE.match(bare)
            if found and found[2] in values:
                bare = f"{found[1] or ''}{found[2]}='{values[found[2]]}'"
            assert "…" not in bare, f"the page wants a value that the test does not know: {bare}"
            lines.append(bare)
    return "\n".join(lines)


class Site:
    """A small platform: two tenants with a database and files each, a second store with copies, and a kit."""

    def __init__(self, folder: Path) -> None:
        self.top = top = folder / "site"
        top.mkdir()
        self.program = Program(top / "data", KIT_PASSPHRASE=PASSPHRASE)
        run = self.program
        for slug in TENANTS:
            live = top / "live" / slug
            (live / "assets").mkdir(parents=True)
            for number in range(10):
                (live / "assets" / f"f{number}").write_bytes(os.urandom(100_000))
            with sqlite3.connect(live / "hotel.db") as connection:
                connection.execute("CREATE TABLE guests (id INTEGER PRIMARY KEY, name TEXT)")
                connection.executemany("INSERT INTO guests VALUES (?, ?)", [(n, f"guest {n}") for n in range(ROWS)])
            run.tenant(slug, assets=live / "assets")
            run(
                "source",
                "add",
                slug,
                "hotel",
                "--kind",
                "sqlite",
                "--category",
                "database",
                "--set",
                f"path={live}/hotel.db",
            )
        run("store", "add", "offsite", "--kind", "local", "--set", f"path={top}/offsite")
        self.backups = {}
        for slug in TENANTS:
            run("copy", "add", slug, "offsite")
            self.backups[slug] = run.backup(slug)["id"]
            run("copy", "run", slug, "--here")
        self.kit = top / "kit.json"
        run("kit", "export", "--output", self.kit, "--passphrase", "env:KIT_PASSPHRASE")
        run("catalogue", "backup", "--here")
        self.before = self.content()
        self._saved = folder / "saved"
        shutil.copytree(top, self._saved, symlinks=True)

    def again(self) -> "Site":
        """As it was when it was made, at the same place: making it takes longer than most pages."""
        shutil.rmtree(self.top)
        shutil.copytree(self._saved, self.top, symlinks=True)
        return self

    def content(self) -> dict[str, object]:
        """What must be as it was: every file, every row."""
        found: dict[str, object] = {}
        for slug in TENANTS:
            live = self.top / "live" / slug
            found[f"{slug}/files"] = tree(live / "assets")
            with sqlite3.connect(live / "hotel.db") as connection:
                found[f"{slug}/rows"] = connection.execute("SELECT * FROM guests ORDER BY id").fetchall()
        return found

    def run(self, page: str, values: Mapping[str, str], data: Path) -> float:
        """Type the page into a shell that stops at the first failure; seconds it took."""
        shell = f'lastro() {{ "{sys.executable}" "{ROOT}/manage.py" "$@"; }}\n{script(page, values)}\n'
        environment = {**self.program.environment, "LASTRO_DATA": str(data)}
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", shell],
            cwd=self.top,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5 * COMMAND_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return time.monotonic() - began


def _same(site: Site) -> None:
    assert site.content() == site.before


@dataclass(frozen=True)
class Case:
    """One page: what is lost before, which values the reader would fill in, what must hold afterwards."""

    lose: Callable[[Site], None]
    values: Callable[[Site], dict[str, str]]
    check: Callable[[Site], None] = _same
    clean: bool = False
    """The commands are typed on a host without anything."""


def _kit(site: Site) -> dict[str, str]:
    return {"KIT": str(site.kit), "PASSPHRASE": "env:KIT_PASSPHRASE", "TENANTS": " ".join(TENANTS)}


def _at(site: Site, name: str, path: str) -> dict[str, str]:
    new = {"LASTRO_DATA": str(site.top / "new")}
    return {**_kit(site), **new, "STORE": name, "STORE_KIND": "local", "STORE_SETTING": f"path={site.top}/{path}"}


def _server(site: Site) -> None:
    shutil.rmtree(site.program.data)
    for slug in TENANTS:
        shutil.rmtree(site.top / "live" / slug / "assets")
        (site.top / "live" / slug / "hotel.db").unlink()


def _database(site: Site) -> None:
    (site.top / "live" / "acme" / "hotel.db").write_bytes(os.urandom(50_000))


def _files(site: Site) -> None:
    shutil.rmtree(site.top / "live" / "acme" / "assets")
    (site.top / "live" / "acme" / "assets").mkdir()


def _store(site: Site) -> None:
    site.program("copy", "remove", "globex", "offsite", "--confirm", "globex")
    repository = site.program("tenant", "show", "globex")["repository_id"]
    shutil.rmtree(site.top / "offsite" / "r" / repository)
    shutil.rmtree(site.program.data / "store")


def _store_again(site: Site) -> None:
    _same(site)
    rows = {slug: site.program("backup", "list", slug)["data"] for slug in TENANTS}
    states = {slug: sorted(each["state"] for each in found) for slug, found in rows.items()}
    assert states == {"acme": ["succeeded", "succeeded"], "globex": ["deleted", "succeeded"]}
    assert site.program("tenant", "show", "globex")["store"] == "fresh"
    site.program(
        "restore", "run", rows["globex"][0]["id"], "--target", f"path={site.top}/out", "--here", "--source", "assets"
    )


def _lastro(site: Site) -> None:
    shutil.rmtree(site.program.data)


def _one(site: Site, **more: str) -> dict[str, str]:
    return {"TENANT": "acme", "BACKUP": site.backups["acme"], **more}


def _new_keys(site: Site) -> None:
    _same(site)
    kit = site.top / "new-kit.json"
    assert site.program("kit", "check", kit, "--passphrase", "env:KIT_PASSPHRASE")["current"]
    assert not site.program("kit", "check", site.kit, "--passphrase", "env:KIT_PASSPHRASE", code=3)["current"]


CASES: dict[str, Case] = {
    "server-loss": Case(_server, lambda site: _at(site, "offsite", "offsite"), clean=True),
    "database-corruption": Case(
        _database,
        lambda site: _one(site, SOURCE="hotel", BROKEN=f"{site.top}/live/acme/hotel.db", LOOK=f"{site.top}/look.db"),
    ),
    "tenant-files-loss": Case(_files, lambda site: _one(site, SOURCE="assets")),
    "store-loss": Case(
        _store,
        lambda site: {
            **_kit(site), "LOST": "default", "COPY": "offsite", "NEW": "fresh", "NEW_KIND": "local",
            "NEW_SETTING": f"path={site.top}/fresh", "COPIED": "acme", "ANEW": "globex",
        },
        check=_store_again,
    ),
    "lastro-loss": Case(_lastro, lambda site: _at(site, "offsite", "offsite"), clean=True),
    "leaked-key": Case(
        lambda site: None,
        lambda site: {**_kit(site), "KIT": f"{site.top}/new-kit.json", "PAPER": f"{site.top}/new-kit.txt"},
        check=_new_keys,
    ),
}  # fmt: skip


def walk(name: str, site: Site) -> float:
    """Lose it, do what the page says, see that all is as before; seconds the page took."""
    case = CASES[name]
    case.lose(site.again())
    data = site.top / "new" if case.clean else site.program.data
    took = site.run((FOLDER / f"{name}.md").read_text(), case.values(site), data)
    case.check(site)
    return took


def write() -> None:
    """Put how long each page took into it."""
    with tempfile.TemporaryDirectory(prefix="lastro-runbook-") as folder:
        site = Site(Path(folder))
        for name in CASES:
            took = walk(name, site)
            page = FOLDER / f"{name}.md"
            page.write_text(TOOK.sub(f"In the test this took **{max(1, round(took))} s**", page.read_text()))


if __name__ == "__main__":
    write()
