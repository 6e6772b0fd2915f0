"""What every request passes before its route: authentication, limits, idempotency."""
