"""The catalogue's rows about tenants: thin, shape and constraints only."""

from tenants.models.backup import Backup, BackupSource, BackupState, BackupType, Origin
from tenants.models.copies import BackupCopy, BackupPresence, Copy, CopyFinding, CopyHealth
from tenants.models.drill import Drill, DrillCheck, DrillState
from tenants.models.plan import PlanState, RestorePlan
from tenants.models.restore import (
    Restore,
    RestoreKind,
    RestoreSource,
    RestoreSourceState,
    RestoreState,
    Validation,
    ValidationStatus,
)
from tenants.models.tenant import Category, Criticality, Module, Source, StoreConfig, Tenant

__all__ = [
    "Backup",
    "BackupCopy",
    "BackupPresence",
    "BackupSource",
    "BackupState",
    "BackupType",
    "Category",
    "Copy",
    "CopyFinding",
    "CopyHealth",
    "Criticality",
    "Drill",
    "DrillCheck",
    "DrillState",
    "Module",
    "Origin",
    "PlanState",
    "Restore",
    "RestoreKind",
    "RestorePlan",
    "RestoreSource",
    "RestoreSourceState",
    "RestoreState",
    "Source",
    "StoreConfig",
    "Tenant",
    "Validation",
    "ValidationStatus",
]
