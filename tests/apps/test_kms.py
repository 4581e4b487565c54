"""The root key behind AWS KMS: moto's server wraps it; what KMS can say no to is told apart."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core import kms, rootkey
from core.kms import KmsDenied, KmsKeyDisabled, KmsKeyMissing, KmsRefused, KmsUnreachable
from core.models import Fact
from core.rootkey import root_key, root_key_place
from engine.keys import RootKey
from tests.services.moto import REGION, WHO, Moto, moto


@pytest.fixture
def server(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    """An installation without a root key, told to use a new key of moto's KMS."""
    served = moto()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", WHO[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WHO[1])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(kms, "ATTEMPTS_MAX", 1)  # Patience is the SDK's; refusals are ours.
    settings.LASTRO_DATA, settings.LASTRO_ROOT_KEY = tmp_path, ""
    settings.LASTRO_KMS_ENDPOINT, settings.LASTRO_KMS_REGION = served.endpoint, REGION
    settings.LASTRO_KMS_KEY_ID = served.key()
    _forget()
    yield served
    _forget()


def _forget() -> None:
    """As a process that has just started."""
    root_key.cache_clear()
    kms._client.cache_clear()


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """A server that says no to everything, as KMS words it; moto knows no rights."""

    class No(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"__type": code, "message": "no"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing on the test's terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), No)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.django_db
def test_kms_wraps_the_root_key_and_unwraps_it_once_per_process(server: Moto, tmp_path: Path) -> None:
    """Goal: no file holds the key, and KMS is asked once; make it, load it as another process, look at what is kept."""
    made = root_key()
    assert root_key_place() == "KMS"
    assert not (tmp_path / "keys").exists()
    wrapped = Fact.objects.get(pk=rootkey.KMS_FACT + made.key_id).value
    assert made.secret_bytes().hex() not in wrapped
    blob = made.seal(b"x", "y")
    _forget()
    assert root_key().open(blob, "y") == b"x"
    server.client("kms").disable_key(KeyId=_key_id())
    assert root_key().open(blob, "y") == b"x"
    server.client("kms").enable_key(KeyId=_key_id())


def _key_id() -> str:
    from django.conf import settings

    return str(settings.LASTRO_KMS_KEY_ID)


@pytest.mark.django_db
def test_what_kms_refuses_is_told_apart(server: Moto, settings: Any) -> None:
    """Goal: the operator knows what to mend; name no key, alter what was wrapped, deny, disable, throttle, take KMS away."""
    made = root_key()
    fact = Fact.objects.get(pk=rootkey.KMS_FACT + made.key_id)
    other = RootKey.generate()
    settings.LASTRO_KMS_KEY_ID = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(KmsKeyMissing, match="knows no key"):
        kms.kms_wrap(other.secret_bytes(), root_key_id=other.key_id)
    with pytest.raises((KmsRefused, KmsKeyMissing)):
        kms.kms_unwrap(b"rubbish", root_key_id=made.key_id)
    with pytest.raises(KmsRefused):  # Another root key's place: the context that KMS was told is another.
        kms.kms_unwrap(base64.b64decode(fact.value), root_key_id=other.key_id)
    said = {
        (400, "AccessDeniedException"): KmsDenied, (400, "ExpiredTokenException"): KmsDenied,
        (400, "DisabledException"): KmsKeyDisabled, (400, "KMSInvalidStateException"): KmsKeyDisabled,
        (400, "InvalidCiphertextException"): KmsRefused, (503, "ServiceUnavailable"): KmsUnreachable,
    }  # fmt: skip
    for (status, code), expected in said.items():
        with answering(status, code) as settings.LASTRO_KMS_ENDPOINT:
            _forget()
            with pytest.raises(expected) as caught:
                root_key()
        assert caught.value.hint and type(caught.value) is expected
    settings.LASTRO_KMS_ENDPOINT = "http://127.0.0.1:1"
    _forget()
    with pytest.raises(KmsUnreachable, match="does not answer"):
        root_key()


@pytest.mark.django_db
def test_reading_the_catalogue_asks_kms_nothing(server: Moto, settings: Any) -> None:
    """Goal: lists work while KMS is away; take it away, then list keys and tenants, look at the audit log."""
    from audit.selectors import Filter, entry_list
    from tenants.selectors import tenant_list
    from tenants.services.keys import key_list

    known = root_key().key_id
    settings.LASTRO_KMS_ENDPOINT = "http://127.0.0.1:1"
    _forget()
    assert key_list()["root_key"]["id"] == known
    assert (tenant_list(), entry_list(Filter(), limit=10)) == ([], [])


@pytest.mark.django_db
def test_a_kit_stands_in_for_a_lost_kms(server: Moto, settings: Any, tmp_path: Path) -> None:
    """Goal: the loss of an AWS account loses nothing; make a kit, lose KMS, take the key from the kit."""
    made = root_key()
    settings.LASTRO_KMS_ENDPOINT = "http://127.0.0.1:1"
    _forget()
    assert rootkey.root_key_put(RootKey.from_text(made.to_text()))
    assert root_key().key_id == made.key_id
    assert root_key_place().endswith("root.key")


@pytest.mark.django_db
def test_the_root_key_moves_from_a_file_into_kms_and_on(server: Moto, settings: Any, tmp_path: Path) -> None:
    """Goal: KMS can be had later, and each of its root keys replaced; begin with a file, rotate twice, look what is left."""
    from operations.services import operation_run
    from tenants.services.key_rotation import root_rotate_start

    wrapping_key, settings.LASTRO_KMS_KEY_ID = settings.LASTRO_KMS_KEY_ID, ""
    first = root_key()
    settings.LASTRO_KMS_KEY_ID = wrapping_key
    seen = [first.key_id]
    for _ in range(2):
        _, operation = root_rotate_start(actor="test", here=True)
        assert operation_run(operation.pk, here=True).result["finished"]
        _forget()
        assert root_key_place() == "KMS"
        assert not (tmp_path / "keys" / "root.key").exists()
        seen.append(root_key().key_id)
    assert len(set(seen)) == 3
    facts = set(Fact.objects.filter(pk__startswith="root_key").values_list("pk", flat=True))
    assert facts == {"root_key_id", f"root_key_kms:{seen[-1]}"}
