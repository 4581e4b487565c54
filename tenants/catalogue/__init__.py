"""Backups of the catalogue itself: rows to files, files to rows."""
