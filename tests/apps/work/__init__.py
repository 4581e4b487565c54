"""An app whose operations do what a test wants, to be installed beside the real ones."""
