"""The catalogue's rows about tenants: thin, shape and constraints only."""

from tenants.models.adoption import CatalogueStore, Installation, RecoveryKit, RepositoryMirror
from tenants.models.anomaly import Anomaly, Baseline, Metric, StoreLook
from tenants.models.backup import Backup, BackupSource, BackupState, BackupType, Origin
from tenants.models.copies import BackupCopy, BackupPresence, Copy, CopyFinding, CopyHealth
from tenants.models.drill import Drill, DrillCheck, DrillState
from tenants.models.figures import Figure, FigureChange, FigureSubject
from tenants.models.keys import (
    CertificateState,
    DestroyedKey,
    GivenUpPlace,
    GivenUpStore,
    KeyEpoch,
    KeyringPlace,
    KeyringState,
    RootRotation,
    ShredCertificate,
)
from tenants.models.objective import Objective, SourceClass
from tenants.models.plan import PlanState, RestorePlan
from tenants.models.promotion import Promotion
from tenants.models.restore import (
    Restore,
    RestoreKind,
    RestoreSource,
    RestoreSourceState,
    RestoreState,
    Validation,
    ValidationStatus,
)
from tenants.models.retention import ClockWitness, DeletionFreeze, RetentionPolicy
from tenants.models.tenant import Category, Criticality, Module, Source, StoreConfig, Tenant

__all__ = [
    "Anomaly",
    "Backup",
    "BackupCopy",
    "BackupPresence",
    "BackupSource",
    "BackupState",
    "BackupType",
    "Baseline",
    "CatalogueStore",
    "Category",
    "CertificateState",
    "ClockWitness",
    "Copy",
    "CopyFinding",
    "CopyHealth",
    "Criticality",
    "DeletionFreeze",
    "DestroyedKey",
    "Drill",
    "DrillCheck",
    "DrillState",
    "Figure",
    "FigureChange",
    "FigureSubject",
    "GivenUpPlace",
    "GivenUpStore",
    "Installation",
    "KeyEpoch",
    "KeyringPlace",
    "KeyringState",
    "Metric",
    "Module",
    "Objective",
    "Origin",
    "PlanState",
    "Promotion",
    "RecoveryKit",
    "RepositoryMirror",
    "Restore",
    "RestoreKind",
    "RestorePlan",
    "RestoreSource",
    "RestoreSourceState",
    "RestoreState",
    "RetentionPolicy",
    "RootRotation",
    "ShredCertificate",
    "Source",
    "SourceClass",
    "StoreConfig",
    "StoreLook",
    "Tenant",
    "Validation",
    "ValidationStatus",
]
