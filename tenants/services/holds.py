"""Legal holds are taken off by two where retention needs four eyes: without one, retention or a shredding may end it."""

from access.approvals import Action
from tenants.models import Backup, Tenant


def release_action(subject: Backup | Tenant, reason: str) -> Action:
    """What a second master has to agree to."""
    tenant = subject.tenant if isinstance(subject, Backup) else subject
    what = "backup.release" if isinstance(subject, Backup) else "tenant.release"
    return Action("retention", what, tenant.slug, {"of": subject.pk, "reason": reason}, tenant_id=tenant.pk)
