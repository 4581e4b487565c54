"""What of this app a backup of the catalogue keeps: the log whole, so that its tree verifies after an adoption."""

from core.exporting import export

export("audit.Entry")
export("audit.Head")
