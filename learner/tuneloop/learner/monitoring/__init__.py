"""What runs beside the loop: gauges, alarms, expiry."""
