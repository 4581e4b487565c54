"""The inside of stores.s3."""
