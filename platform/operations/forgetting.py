"""What of this app's schedules the catalogue forgets, and when."""

import datetime

from django.db.models import QuerySet

from operations.history import history_register
from operations.models import RUN_FINAL_STATES, ExpectedRun


@history_register("expected runs", term="history")
def _runs(before: datetime.datetime) -> "QuerySet[ExpectedRun]":
    return ExpectedRun.objects.filter(ended_at__lt=before, state__in=RUN_FINAL_STATES)
