"""The inside of stores.azure."""
