"""What workers do for the audit log by themselves."""

import datetime

from audit.services import record
from core import clock
from core.models import Fact

SYSTEM = "system:audit"
VERIFY_EVERY = datetime.timedelta(days=1)
VERIFIED_FACT = "audit_verified_at"


def minute() -> None:
    """Make a checkpoint when one is due, bring witnesses and receivers up to date, finish a cut that was killed."""
    from audit.checkpoints import checkpoint_if_due
    from audit.forwarding import entries_forward
    from audit.proofs import tiles_fill
    from audit.truncation import cut_finish
    from audit.witness import witnesses_send

    checkpoint_if_due()
    witnesses_send()
    entries_forward()
    tiles_fill()
    cut_finish()
    if _verification_due():
        verify()


def verify() -> None:
    """Verify the whole log; what is wrong goes on record, where alerts find it."""
    from audit.verification import audit_verify

    verdict = audit_verify()
    if not verdict.intact:
        message = f"the audit log was altered: {verdict.findings[0]}"
        data = {"findings": verdict.findings[:20], "entries": verdict.size}
        record("audit.altered", message=message, actor=SYSTEM, level="error", data=data)


def _verification_due() -> bool:
    """Once a day; of two workers that ask at once, one is told so."""
    now = clock.now()
    kept, made = Fact.objects.get_or_create(pk=VERIFIED_FACT, defaults={"value": now.isoformat()})
    if made:
        return False  # Nothing to look back on yet.
    try:
        at = datetime.datetime.fromisoformat(kept.value)
    except ValueError:
        at = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    if now - at < VERIFY_EVERY:
        return False
    return bool(Fact.objects.filter(pk=VERIFIED_FACT, value=kept.value).update(value=now.isoformat()))
