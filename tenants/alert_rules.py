"""The alert rules of this app, imported when rules are first asked for (see operations.alerting.rules)."""

from operations.alert_rules import OWN_RULES
from tenants.alerting import anomalies, backups, keys, objectives, reporting, stores

OWN_RULES.update({"backup", "drill"})

__all__ = ["anomalies", "backups", "keys", "objectives", "reporting", "stores"]
