"""The app of the settings: its checks, and the end of the start."""

import gc
import sys

from django.apps import AppConfig

UNWANTED = ("croniter", "prometheus_client")
"""What django_q loads on its start where it is installed: for cron expressions in its own schedules and for another
library's metrics. We have neither; the first even starts a program to find out how wide this machine's words are."""
for _name in UNWANTED:
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]


class ConfigConfig(AppConfig):
    name = "config"
    label = "config"

    def ready(self) -> None:
        """Register the checks (imported only by commands that run them); end the quiet of the start."""
        for name in UNWANTED:
            if sys.modules.get(name, self) is None:
                del sys.modules[name]  # Whoever else wants it may have it.
        # What is loaded by now stays: it is never looked at again, and forked workers go on sharing its pages.
        gc.freeze()
        gc.enable()
        from django.core.checks import register

        def configuration(**_: object) -> list:
            from config import checks

            return checks.run()

        register(configuration)

        def deployment(**_: object) -> list:
            from config import checks

            return checks.run_deployment()

        register(deployment, deploy=True)
