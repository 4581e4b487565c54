"""What changes the catalogue: each service is one transaction of rows, operation and audit entry."""
