"""The parts of the PostgreSQL connector; `connectors.postgresql` is the only way in."""
