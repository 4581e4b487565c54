"""The shapes of answers, for the schema: services and `*_outputs` make them, tests hold the two together."""

from typing import Any

from rest_framework import serializers


class Serializer(serializers.Serializer[Any]):
    """A field `class_` is called `class`, which Python does not take for a name."""

    def get_fields(self) -> dict[str, Any]:
        return {name.rstrip("_"): field for name, field in super().get_fields().items()}


Text, Number, Flag, Moment = (
    serializers.CharField,
    serializers.IntegerField,
    serializers.BooleanField,
    serializers.DateTimeField,
)
Anything, Choice = serializers.JSONField, serializers.ChoiceField


class Texts(serializers.ListField):
    """A list that is counted before its members are looked at: a mebibyte of wrong ones would keep a server busy."""

    def to_internal_value(self, data: Any) -> Any:
        if self.max_length is not None and isinstance(data, list) and len(data) > self.max_length:
            self.fail("max_length", max_length=self.max_length)
        return super().to_internal_value(data)


def texts() -> Any:
    """A list of texts."""
    return Texts(child=Text())


class ProblemErrorShape(Serializer):
    pointer = Text(help_text="JSON pointer into the body, or the name of a parameter")
    detail = Text()


class ProblemShape(Serializer):
    type = Text(help_text="urn:lastro:problem: and the code")
    title = Text()
    status = Number()
    detail = Text()
    code = Text()
    request_id = Text(allow_blank=True)
    errors = ProblemErrorShape(many=True)
    retryable = Flag()
    hint = Text(allow_blank=True)


class ErrorShape(Serializer):
    code = Text()
    detail = Text()
    hint = Text(allow_blank=True)


class OperationErrorShape(ErrorShape):
    title = Text()
    status = Number()
    retryable = Flag()


class WarningShape(Serializer):
    code = Text()
    message = Text()


class ProgressShape(Serializer):
    percent = serializers.FloatField(allow_null=True)
    bytes_done = Number()
    bytes_total = Number(allow_null=True)
    items_done = Number()
    items_total = Number(allow_null=True)
    rate_bps = Number(allow_null=True)
    eta_s = Number(allow_null=True)


class OperationShape(Serializer):
    id = Text()
    kind = Text()
    state = Text()
    phase = Text(allow_blank=True)
    phases = texts()
    progress = ProgressShape()
    heartbeat_at = Moment(allow_null=True)
    cancellable = Flag()
    actor = Text()
    tenant = Text(allow_blank=True)
    subject_id = Text(allow_blank=True)
    reason = Text(allow_blank=True)
    attempt = Number()
    retry_of = Text(allow_blank=True)
    worker = Text(allow_blank=True)
    warnings = WarningShape(many=True)
    requested_at = Moment()
    started_at = Moment(allow_null=True)
    finished_at = Moment(allow_null=True)
    result = Anything()
    error = OperationErrorShape(allow_null=True)
    links = Anything(help_text="addresses of the operation and of what it is about")


class TenantShape(Serializer):
    id = Text()
    slug = Text()
    name = Text()
    class_ = Text()
    store = Text()
    repository_id = Text()
    created_at = Moment()
    archived_at = Moment(allow_null=True)
    held = Flag()
    held_reason = Text(allow_blank=True)
    shredded_at = Moment(allow_null=True)


class SourceShape(Serializer):
    id = Text()
    tenant = Text()
    name = Text()
    kind = Text()
    category = Text()
    class_ = Text()
    enabled = Flag()
    settings = Anything(help_text="secret ones are only said to be set")
    tested_at = Moment(allow_null=True)
    last_good_backup = Text(allow_null=True)
    last_good_at = Moment(allow_null=True)
    archived_at = Moment(allow_null=True)


class StoreShape(Serializer):
    name = Text()
    kind = Text()
    settings = Anything(help_text="secret ones are only said to be set")
    default = Flag()
    offsite = Flag()
    medium = Text()
    paid = Flag(allow_null=True, help_text="null: as its kind is")
    keeps_keys = Flag()
    bytes_per_second = Number(allow_null=True)
    tested_at = Moment(allow_null=True)
    tested = Text(allow_null=True, allow_blank=True)


class BackupSourceShape(Serializer):
    name = Text()
    kind = Text()
    category = Text()
    state = Text()
    position = Anything()
    rows = Number(allow_null=True)
    files = Number(allow_null=True)
    size_bytes = Number(allow_null=True)
    sha256 = Text(allow_blank=True)
    error = Text(allow_blank=True)


class BackupShape(Serializer):
    id = Text()
    tenant = Text()
    number = Number(allow_null=True)
    type = Text()
    requested_type = Text()
    state = Text()
    timestamp = Moment()
    finished_at = Moment(allow_null=True)
    tags = texts()
    trigger = Text()
    origin = Text()
    parent = Text(allow_null=True)
    size_bytes = Number(allow_null=True)
    stored_bytes = Number(allow_null=True)
    duration_ms = Number(allow_null=True)
    checksums = Anything()
    encrypted = Flag()
    compressed = Flag()
    held = Flag()
    expires_at = Moment(allow_null=True)
    trashed_at = Moment(allow_null=True)
    locked_until = Moment(allow_null=True)
    verified_at = Moment(allow_null=True)
    damaged = Flag()
    warnings = Anything()
    error = ErrorShape(allow_null=True)
    sources = BackupSourceShape(many=True)
    copies = Anything()
    operation = Text(allow_blank=True)


class AliasBackupShape(BackupShape):
    date = Moment()
    size = Text(help_text="human, such as 2.5 GB")
    status = Text()
    location = texts()


class PlanShape(Serializer):
    plan = Text()
    tenant = Text()
    kind = Text()
    state = Text()
    backup = Text()
    mode = Text(allow_blank=True)
    in_place = Flag()
    made_at = Moment(allow_null=True)
    expires_at = Moment(allow_null=True)
    expired = Flag()
    totals = Anything()
    reason = Text(allow_blank=True)
    created_by = Text()
    operation = Text(allow_blank=True)
    error = ErrorShape(allow_null=True)


class PlanWholeShape(PlanShape):
    tables = Anything(help_text="per table insert, update, delete, unchanged, samples")
    files = Anything()
    loss = texts()
    estimate = Anything()
    warnings = texts()


class RestoreShape(Serializer):
    id = Text()
    tenant = Text()
    backup = Text()
    state = Text()
    kind = Text()
    mode = Text(allow_blank=True)
    undoes = Text(allow_null=True)
    plan = Text(allow_null=True)
    in_place = Flag()
    safety_backup = Text(allow_null=True)
    reason = Text(allow_blank=True)
    created_by = Text()
    started_at = Moment(allow_null=True)
    finished_at = Moment(allow_null=True)
    duration_ms = Number(allow_null=True)
    undo_until = Moment(allow_null=True)
    warnings = Anything()
    error = ErrorShape(allow_null=True)
    operation = Text(allow_blank=True)


class RestoreWholeShape(RestoreShape):
    checks = Anything()
    validation = Text(allow_null=True)
    sources = Anything()


class DrillShape(Serializer):
    id = Text()
    tenant = Text()
    backup = Text(allow_null=True)
    status = Text()
    checks_passed = Number(allow_null=True)
    checks_failed = Number(allow_null=True)
    restore_ms = Number(allow_null=True)
    duration_ms = Number(allow_null=True)
    started_at = Moment(allow_null=True)


class DrillWholeShape(DrillShape):
    finished_at = Moment(allow_null=True)
    sources = Anything()
    checks = Anything()
    cleared = Flag()
    operation = Text(allow_blank=True)
    error = ErrorShape(allow_null=True)


class ProtectionShape(Serializer):
    tenant = Text()
    holds = Flag()
    copies = Number()
    media = texts()
    offsite = texts()
    lacks = texts()
    next = Text(allow_blank=True, allow_null=True)
    stores = Anything()


class CursorsShape(Serializer):
    next = Text(allow_null=True)
    prev = Text(allow_null=True)


class AliasBackupsShape(Serializer):
    backups = AliasBackupShape(many=True)
    page = CursorsShape()


class AliasAcceptedShape(Serializer):
    success = Flag()
    operation = OperationShape()


class AliasTriggeredShape(AliasAcceptedShape):
    backup_id = Text(allow_blank=True, help_text="empty where several tenants are backed up")
    backupId = Text(allow_blank=True)  # noqa: N815 - as existing automation knows it
    timestamp = Moment()


class AliasRestoredShape(AliasAcceptedShape):
    message = Text()
    estimatedTime = Number(allow_null=True, help_text="seconds, from earlier restores; null before the first")  # noqa: N815


def page_of(shape: type[Serializer]) -> type[Serializer]:
    """The shape of a page of a list."""
    name = shape.__name__.removesuffix("Shape")
    return type(f"{name}PageShape", (Serializer,), {"data": shape(many=True), "page": CursorsShape()})
