"""Where each resource is. A trailing slash is taken everywhere."""

from typing import Any

from django.urls import URLPattern, path, re_path

from api.resources import aliases, anything, backups, downloads, operations, restores, stores, tenants


def _both(address: str, view: Any, name: str) -> list[URLPattern]:
    return [path(address, view.as_view(), name=name), path(f"{address}/", view.as_view())]


_V1: tuple[tuple[str, Any], ...] = (
    ("tenants", tenants.TenantsView),
    ("tenants/<str:slug>", tenants.TenantView),
    ("tenants/<str:slug>/sources", tenants.SourcesView),
    ("tenants/<str:slug>/protection", tenants.ProtectionView),
    ("backups", backups.BackupsView),
    ("backups/<str:backup_id>", backups.BackupView),
    ("backups/<str:backup_id>/verify", backups.VerifyView),
    ("backups/<str:backup_id>/protect", backups.ProtectView),
    ("backups/<str:backup_id>/copies", backups.CopiesView),
    ("backups/<str:backup_id>/manifest", backups.ManifestView),
    ("backups/<str:backup_id>/download", downloads.DownloadView),
    ("backups/<str:backup_id>/diff/<str:other_id>", backups.DiffView),
    ("restore-plans", restores.PlansView),
    ("restore-plans/<str:plan_id>", restores.PlanView),
    ("restores", restores.RestoresView),
    ("restores/<str:restore_id>", restores.RestoreView),
    ("restores/<str:restore_id>/undo", restores.UndoView),
    ("drills", restores.DrillsView),
    ("drills/<str:drill_id>", restores.DrillView),
    ("stores", stores.StoresView),
    ("stores/<str:name>", stores.StoreView),
    ("stores/<str:name>/test", stores.StoreTestView),
    ("operations", operations.OperationsView),
    ("operations/<str:operation_id>", operations.OperationView),
    ("operations/<str:operation_id>/cancel", operations.CancelView),
    ("operations/<str:operation_id>/retry", operations.RetryView),
)
_ALIASES: tuple[tuple[str, Any], ...] = (
    ("backups", aliases.AliasBackupsView),
    ("backups/status", aliases.AliasStatusView),
    ("backups/trigger", aliases.AliasTriggerView),
    ("backups/<str:backup_id>", aliases.AliasBackupView),
    ("backups/<str:backup_id>/download", aliases.AliasDownloadView),
    ("backups/<str:backup_id>/restore", aliases.AliasRestoreView),
)

app_name = "api"
urlpatterns = [
    *(pattern for address, view in _V1 for pattern in _both(f"v1/{address}", view, view.__name__)),
    *(pattern for address, view in _ALIASES for pattern in _both(f"admin/{address}", view, f"Alias{view.__name__}")),
    path("schema/", anything.SchemaView.as_view(), name="schema"),
    path("schema", anything.SchemaView.as_view()),
    re_path(r"^.*$", anything.UnknownView.as_view()),
]
