"""docs/formats/event-log-package.md says what the code does."""

import hashlib
import json
import re
from pathlib import Path

from connectors._eventlog.chain import FIELDS, event_hash
from connectors._eventlog.package import parse_manifest

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "formats" / "event-log-package.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_worked_example_follows_the_rule() -> None:
    """Goal: the example is true. Method: hash its joined texts, and its events with our code."""
    events = json.loads(block("json worked-example"))
    texts = block("text worked-example").splitlines()
    assert len(events) == len(texts) == 2
    for event, text in zip(events, texts, strict=True):
        assert hashlib.sha256(text.encode()).hexdigest() == event["current_hash"] == event_hash(event)
    assert events[1]["previous_hash"] == events[0]["current_hash"]
    assert tuple(events[0]) == FIELDS


def test_manifest_example_is_a_manifest() -> None:
    """Goal: the example is true. Method: read it and write it again."""
    examples = re.findall(r"^```json\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    text = next(each for each in examples if "eventlog_summary" in each)
    assert parse_manifest(json.loads(text)).encode().decode() + "\n" == text


def test_every_finding_is_explained() -> None:
    """Goal: no reason code without a word about it. Method: look for each in the document."""
    from typing import get_args

    from connectors._eventlog.chain import Reason

    for reason in get_args(Reason):
        assert f"`{reason}`" in DOCUMENT
