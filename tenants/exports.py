"""What of this app a backup of the catalogue keeps: no keyring, so that a shredded tenant cannot come back by it."""

from core.exporting import export, leave_out

export("tenants.StoreConfig")
# Wrapped keys lie in the stores; whoever adopts takes those that are still there.
export("tenants.Tenant", without=("keyring",), instead={"keyring": b""})
export("tenants.Source")
export("tenants.Module")
export("tenants.Backup")
export("tenants.BackupSource")
# Sealed under the tenant's key: previews, journals and evidence say nothing once that is destroyed.
export("tenants.RestorePlan")
export("tenants.Restore")
export("tenants.RestoreSource")
export("tenants.Validation")
export("tenants.Drill")
export("tenants.DrillCheck")
export("tenants.RecoveryKit")
export("tenants.Copy")
export("tenants.BackupCopy")
export("tenants.CopyFinding")
export("tenants.Promotion")
export("tenants.KeyringPlace")
export("tenants.KeyEpoch")
export("tenants.RootRotation")
export("tenants.DestroyedKey")
export("tenants.ShredCertificate")
export("tenants.RetentionPolicy")
export("tenants.DeletionFreeze")
leave_out("tenants.ClockWitness", why="tells of one host's clock")
leave_out("tenants.Installation", why="made anew by an adoption, with its keyring from the store")
leave_out("tenants.CatalogueStore", why="counts what a store holds; older than the backup that holds it")
leave_out("tenants.RepositoryMirror", why="what the stores know is found again by reconciling")
