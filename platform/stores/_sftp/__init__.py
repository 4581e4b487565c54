"""The inside of stores.sftp."""
