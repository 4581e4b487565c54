"""Work by the clock: pure rules (cron, days, planning), and on them the services that plan and release."""
