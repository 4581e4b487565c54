"""Long work: operations, the leases they work under, the hooks around them."""

from operations.models.hook import Hook, HookEvent, HookFailure, HookRun
from operations.models.lease import Lease
from operations.models.operation import ACTIVE_STATES, FINAL_STATES, Operation, OperationState

__all__ = [
    "ACTIVE_STATES",
    "FINAL_STATES",
    "Hook",
    "HookEvent",
    "HookFailure",
    "HookRun",
    "Lease",
    "Operation",
    "OperationState",
]
