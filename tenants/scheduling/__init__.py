"""What schedules do about tenants: for whom, and how it begins."""
