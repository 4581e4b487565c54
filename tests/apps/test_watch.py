"""The watch beside real workers: it looks and tells by itself, and goes on when a sender is killed."""

import json
import signal
import subprocess
from pathlib import Path

from tests.apps.installation import Installation
from tests.services.receiver import receiver, wait_until


def _rules(heard: list) -> list[str]:
    return [json.loads(each.body)["data"]["rule"] for each in heard]


def test_a_worker_watches_and_a_killed_one_is_made_up_for(tmp_path: Path) -> None:
    """Goal: alerts need no cron job; a worker that is killed between sending and recording, then another one."""
    place = Installation(tmp_path)
    place.environment["LASTRO_OUTGOING_ALLOW"] = "127.0.0.1"
    with receiver() as target:
        added = place(
            "channel", "add", "hook", "--kind", "webhook", "--set", f"url={target.url}", "--set", "plain_http=yes"
        )
        assert added.code == 0, added.err
        assert place("alert", "rule", "set", "data_folder_filling", "--set", "free_gb=100000").code == 0
        died = subprocess.run(
            place.argv("alert", "run"),
            env={**place.environment, "LASTRO_KILL_AT": "alert.sent"},
            capture_output=True,
            timeout=60,
        )
        assert died.returncode == -signal.SIGKILL
        assert _rules(target.heard) == ["data_folder_filling"]
        assert len(place("alert", "list", "--json").json["data"]) == 1
        assert place("alert", "rule", "set", "data_folder_filling", "--disable").code == 0
        with place.worker() as worker:
            wait_until(lambda: place("alert", "list", "--json").json["data"] == [], 30)
            assert place("alert", "rule", "set", "data_folder_filling", "--enable").code == 0
            worker.send_signal(signal.SIGKILL)
            worker.wait(20)
        assert place("alert", "run").code == 0
        assert len(place("alert", "list", "--json").json["data"]) == 1
