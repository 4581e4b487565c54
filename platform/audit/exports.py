"""What of this app a backup of the catalogue keeps: the log whole, so that its tree verifies after an adoption."""

from core.exporting import export, leave_out

export("audit.Entry")
export("audit.Head")
export("audit.CheckpointKey")
export("audit.Checkpoint")
leave_out("audit.Delivery", why="says how far others have got; they are asked anew")
leave_out("audit.Tile", why="made again from the entries")
