"""What of this app a backup of the catalogue keeps."""

from core.exporting import export

export("access.Account")
# A token comes back as a name without a right: programs get new ones.
export("access.Token", without=("secret_hash",), instead={"secret_hash": ""})
export("access.Approval")
