"""A witness behind a URL: it receives each checkpoint by POST, as the text of the note."""

from core.errors import CatalogueError
from core.outgoing import Reach, http_call

CALL_SECONDS = 20


class WitnessRefused(CatalogueError):
    """The address did not take the checkpoint."""

    code = "audit.witness_refused"
    retryable = True


class Caller:
    """audit.witness.Witness of an http:// or https:// address."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def put(self, log_id: str, size: int, note: bytes) -> None:
        """Post the note; any answer of 2xx is a receipt."""
        headers = {"Content-Type": "text/plain; charset=utf-8", "Lastro-Log": log_id, "Lastro-Size": str(size)}
        answer = http_call(
            self._url, method="POST", body=note, headers=headers, reach=Reach.HOUSE, seconds=CALL_SECONDS
        )
        if not answer.is_success:
            raise WitnessRefused(f"the witness answered {answer.status}", hint="it has to take a POST of text/plain")

    def sizes(self, log_id: str) -> None:
        """It cannot be asked."""
        return

    def get(self, log_id: str, size: int) -> bytes:
        """It cannot be asked."""
        raise WitnessRefused("this witness only receives", hint="compare with what it has kept")
