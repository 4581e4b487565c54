"""Long work: operations, the leases they work under, the hooks around them, the schedules that ask for them, the alerts about them."""

from operations.models.alert import (
    LIVE_STATES,
    Alert,
    AlertDelivery,
    AlertMessage,
    AlertState,
    Channel,
    DeliveryState,
    MessageKind,
    RuleVersion,
    Severity,
)
from operations.models.hook import Hook, HookEvent, HookFailure, HookRun
from operations.models.lease import Lease
from operations.models.operation import ACTIVE_STATES, FINAL_STATES, Operation, OperationState
from operations.models.schedule import (
    NEVER,
    RUN_FINAL_STATES,
    CatchUp,
    ExpectedRun,
    Quota,
    QuotaScope,
    RunState,
    Schedule,
    Scheduler,
)

__all__ = [
    "ACTIVE_STATES",
    "FINAL_STATES",
    "LIVE_STATES",
    "NEVER",
    "RUN_FINAL_STATES",
    "Alert",
    "AlertDelivery",
    "AlertMessage",
    "AlertState",
    "CatchUp",
    "Channel",
    "DeliveryState",
    "ExpectedRun",
    "Hook",
    "HookEvent",
    "HookFailure",
    "HookRun",
    "Lease",
    "MessageKind",
    "Operation",
    "OperationState",
    "Quota",
    "QuotaScope",
    "RuleVersion",
    "RunState",
    "Schedule",
    "Scheduler",
    "Severity",
]
