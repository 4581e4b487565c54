"""What every app's rows share: sortable ids, time of creation, the history of states."""

from typing import Any, ClassVar

from django.db import models

from core import clock
from core.ids import ID_LENGTH_MAX, new_id


class Record(models.Model):
    """A row with a prefixed, sortable id; subclasses set `id_prefix` (three letters)."""

    id_prefix: ClassVar[str]

    id = models.CharField(primary_key=True, max_length=ID_LENGTH_MAX, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        abstract = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Here and not in a field default: a default cannot know its model, and ids are wanted before saving.
        if not self.id:
            self.id = new_id(type(self).id_prefix)

    def __str__(self) -> str:
        return self.id


class StateChange(models.Model):
    """One step of a state machine; written only by `core.transitions.transition`."""

    subject_type = models.CharField(max_length=40)
    subject_id = models.CharField(max_length=64)
    from_state = models.CharField(max_length=32)
    to_state = models.CharField(max_length=32)
    at = models.DateTimeField(default=clock.now)
    actor = models.CharField(max_length=150, blank=True)
    reason = models.TextField(blank=True)

    class Meta:
        indexes = [models.Index(fields=["subject_id", "id"], name="core_statechange_subject")]

    def __str__(self) -> str:
        return f"{self.subject_id}: {self.from_state} -> {self.to_state}"


class Fact(models.Model):
    """One thing the installation knows about itself (`root_key_id` …), by name."""

    name = models.CharField(primary_key=True, max_length=60)
    value = models.CharField(max_length=500)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"
