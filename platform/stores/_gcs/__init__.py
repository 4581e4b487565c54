"""The inside of stores.gcs."""
