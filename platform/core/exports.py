"""What of this app a backup of the catalogue keeps."""

from core.exporting import export

export("core.Fact")
export("core.StateChange")
