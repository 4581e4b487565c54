"""Parts of the files connector."""
