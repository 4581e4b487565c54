from django.apps import AppConfig


class ConfigConfig(AppConfig):
    name = "config"
    label = "config"

    def ready(self) -> None:
        """Register the checks; they are imported only by commands that run checks."""
        from django.core.checks import register

        def configuration(**_: object) -> list:
            from config import checks

            return checks.run()

        register(configuration)

        def deployment(**_: object) -> list:
            from config import checks

            return checks.run_deployment()

        register(deployment, deploy=True)
