"""A store that is reached by http is used, and every look at it says what that means."""

import json
from typing import Any

import pytest
from django.core.management import load_command_class

from tenants.diagnosis import diagnose
from tests.tenants.conftest import House


def test_http_beyond_this_host_is_said(
    house: House, s3_store_values: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Goal: nobody sends signatures in clear unawares. Method: add a real bucket by an address that is no loopback, test it, doctor."""
    (house.data / "secret").write_text(s3_store_values["secret_key"])
    values = {**s3_store_values, "secret_key": f"@{house.data}/secret"}
    values["endpoint"] = values["endpoint"].replace("127.0.0.1", "0.0.0.0")  # Linux answers it as this host.
    settings = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]

    def run(*argv: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        program: Any = load_command_class("tenants", "store")
        code = program.run([*argv, "--json", "--no-input"], noun="store")
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    code, done, _ = run("add", "far", "--kind", "s3", *settings)
    assert code == 0, done
    code, found, _ = run("test", "far")
    (line,) = (step for step in found["steps"] if step["step"] == "line")
    assert (code, found["status"], line["state"]) == (3, "limited", "missing")
    assert "0.0.0.0 is reached by http" in line["said"] and "https" in line["hint"]
    (sign,) = (each for each in diagnose() if each.name == "store far")
    assert (sign.status, "by http" in sign.message) == ("warning", True)
    other = [f"prefix={values['prefix']}-2" if part.startswith("prefix=") else part for part in settings]
    code, _, noted = run("add", "farther", "--kind", "s3", *other, "--no-test")
    assert code == 0 and "is reached by http" in noted
    code, found, _ = run("test", "default")
    assert (code, found["status"]) == (0, "ok")
