"""What workers do for tenants once a minute."""

from operations.minutely import minutely


@minutely("the overview's")
def _figures() -> None:
    from tenants.figures.counting import changes_fold

    changes_fold()


@minutely("archives'")
def _archives() -> None:
    from tenants.archives import archives_clear

    archives_clear()
