"""`platform` is a folder on the path and never a package: the standard library's stays importable everywhere."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, files

STANDARD = Path(sysconfig.get_path("stdlib"), "platform.py").resolve()
ASK = "import platform, json; print(json.dumps([platform.__file__, platform.python_version()]))"
CHILDREN = ("access", "api", "audit", "config", "connectors", "core", "engine", "operations", "panel", "stores")


def _is_standard(said: str) -> None:
    """Check the last line of a program that ran ASK."""
    file, version = json.loads(said.strip().splitlines()[-1])
    assert Path(file).resolve() == STANDARD
    assert version == ".".join(map(str, sys.version_info[:3]))


def _run(*command: str | Path, cwd: Path = ROOT, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """Run a program as a user would, without the paths that pytest has added."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DJANGO_SETTINGS_MODULE")
    }
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment, **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """An installation of its own."""
    return {"LASTRO_DATA": str(tmp_path / "data"), "DJANGO_SETTINGS_MODULE": "config.settings"}


def test_the_folder_is_no_package() -> None:
    """Goal: nothing can be imported as `platform.…`; look for modules in the folder itself."""
    assert [path.name for path in (ROOT / "platform").iterdir() if path.is_file()] == []
    assert {path.relative_to(ROOT / "platform").parts[0] for path in files("platform", suffix="")} == set(CHILDREN)


def test_children_are_regular_packages() -> None:
    """Goal: a wheel holds them and a stray folder of the same name cannot be merged in; look for their __init__."""
    folders = [*(ROOT / "platform" / name for name in CHILDREN), ROOT / "tenants", ROOT / "releases"]
    assert [folder.name for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_under_pytest() -> None:
    """Goal: tests see the standard library's; ask in this process, whose path holds platform/ and its parent."""
    import platform

    assert {str(ROOT), str(ROOT / "platform")} <= set(sys.path)
    assert platform.__file__ is not None
    assert Path(platform.__file__).resolve() == STANDARD


def test_under_manage(data: dict[str, str]) -> None:
    """Goal: the command line sees it; ask from Django's shell, started from another folder too."""
    _is_standard(_run(sys.executable, "manage.py", "shell", "--no-imports", stdin=ASK, env=data))
    _is_standard(_run(sys.executable, ROOT / "manage.py", "shell", "--no-imports", cwd=Path("/"), stdin=ASK, env=data))


def test_under_the_server(data: dict[str, str], tmp_path: Path) -> None:
    """Goal: the web server sees it; let a gunicorn worker that has loaded the application ask, then stop."""
    answer = tmp_path / "answer"
    configuration = tmp_path / "gunicorn.conf.py"
    configuration.write_text(f"""
import os, signal
bind = "127.0.0.1:0"
pythonpath = "platform,."
worker_tmp_dir = {str(tmp_path)!r}
def post_worker_init(worker):
    import json, platform
    assert worker.wsgi is not None
    with open({str(answer)!r}, "w") as file:
        file.write(json.dumps([platform.__file__, platform.python_version()]))
    os.kill(os.getppid(), signal.SIGTERM)
""")
    program = "from gunicorn.app.wsgiapp import run; run()"
    _run(sys.executable, "-P", "-c", program, "-c", configuration, "config.wsgi", env=data)
    _is_standard(answer.read_text())


def test_under_the_worker(data: dict[str, str], tmp_path: Path) -> None:
    """Goal: a task sees it; let a real django-q2 cluster run one task and read its result."""
    _run(sys.executable, "manage.py", "migrate", "--verbosity", "0", env=data)
    script = tmp_path / "worker.py"
    script.write_text("""
import django
django.setup()
import json
from django_q.cluster import Cluster
from django_q.tasks import async_task, result
task = async_task("builtins.eval", "[__import__('platform').__file__, __import__('platform').python_version()]")
cluster = Cluster()
cluster.start()
answer = result(task, wait=60_000)
cluster.stop()
print(json.dumps(answer))
""")
    _is_standard(_run(sys.executable, script, env={**data, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, unpacked as an installation would lay it."""
    folder = tmp_path_factory.mktemp("wheel")
    program = f"import hatchling.build as build; print(build.build_wheel({str(folder)!r}))"
    name = _run(sys.executable, "-c", program).strip().splitlines()[-1]
    with zipfile.ZipFile(folder / name) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_in_an_installed_wheel(wheel: Path, data: dict[str, str], tmp_path: Path) -> None:
    """Goal: without the source tree all is the same; run the console script's function on the unpacked wheel only."""
    assert not (wheel / "platform").exists()
    assert not (wheel / "platform.py").exists()
    env = {**data, "PYTHONPATH": str(wheel)}
    where = "import engine, tenants, config; print(engine.__file__)"
    # An editable install's .pth stands behind PYTHONPATH, and -P keeps the current folder out.
    assert Path(_run(sys.executable, "-P", "-c", where, cwd=tmp_path, env=env).strip()).is_relative_to(wheel)
    script = "import sys; sys.argv[0] = 'lastro'; from config.command import main; main()"
    _is_standard(_run(sys.executable, "-P", "-c", script, "shell", "--no-imports", cwd=tmp_path, stdin=ASK, env=env))
    found = "from django.template.loader import get_template; import pathlib; print('templates ok')"
    assert "templates ok" in _run(
        sys.executable, "-P", "-c", script, "shell", "--no-imports", cwd=tmp_path, stdin=found, env=env
    )


def test_the_wheel_holds_everything(wheel: Path) -> None:
    """Goal: nothing is left behind; compare the wheel with the tree, file by file."""
    expected = {path.relative_to(ROOT / "platform").as_posix() for path in files("platform", suffix="")}
    expected |= {path.relative_to(ROOT).as_posix() for path in files("tenants", "releases", suffix="")}
    expected |= {f"config/templates/{path.relative_to(ROOT / 'templates')}" for path in files("templates", suffix="")}
    present = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert expected - present == set()
    assert {name.split("/")[0] for name in present if ".dist-info" not in name} <= {*CHILDREN, "tenants", "releases"}
    assert any(name.endswith("entry_points.txt") for name in present)
