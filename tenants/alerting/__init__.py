"""What is wrong with tenants, their backups, stores and keys: the rules of this app (see operations.alerting)."""
