"""The app of the settings: its checks, and the end of the start."""

import gc

from django.apps import AppConfig


class ConfigConfig(AppConfig):
    name = "config"
    label = "config"

    def ready(self) -> None:
        """Register the checks (imported only by commands that run them); end the quiet of the start."""
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
