"""Parts of the SQLite connector."""
