"""What the operations of this app do: by kind, the module of this package that registers it (see operations.handlers)."""

MODULES = {
    "backup": "backup",
    "catalogue": "catalogue",
    "copies": "copies",
    "copy": "copies",
    "copy_repair": "copy_repairs",
    "copy_verify": "copy_checks",
    "delete": "delete",
    "drill": "drill",
    "export": "export",
    "key_rotate": "keys",
    "key_rotate_root": "keys",
    "key_shred": "keys",
    "plan": "plan",
    "promote": "promote",
    "prune": "prune",
    "reconcile": "reconcile",
    "restore": "restore",
    "retention": "retention",
    "retention_look": "retention_look",
    "verify": "verify",
}
