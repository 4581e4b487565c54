"""Names of workers."""

import os
import socket


def cluster_name() -> str:
    """Names the cluster in its workers and in the process that fetches for them: both are children of its guard."""
    return f"{socket.gethostname()[:80]}:{os.getppid()}/"
