"""What of this app a backup of the catalogue keeps."""

from core.exporting import export, leave_out

export("operations.Operation")
export("operations.Hook")
export("operations.HookRun")
# The tokens must go on growing; who holds a lease on another host does not count here.
export("operations.Lease", without=("holder",), instead={"holder": ""})
export("django_q.Schedule", without=("task",), instead={"task": None})
export("operations.Schedule")
export("operations.ExpectedRun")
export("operations.Quota")
leave_out("operations.Scheduler", why="tells of the last tick on another host's clock")
export("operations.Channel")
export("operations.RuleVersion")
leave_out("operations.Alert", why="the next look finds what is wrong, and what was wrong is told by the audit log")
leave_out("operations.AlertMessage", why="said already, or said again by the next look")
leave_out("operations.AlertDelivery", why="belongs to the messages")
