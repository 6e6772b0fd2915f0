"""Metrics of the event bus, in every process that uses one."""

from prometheus_client import Counter, Gauge

connected = Gauge("tuneloop_bus_connected", "1 while the event bus can be reached, else 0.")
reconnects = Counter("tuneloop_bus_reconnects_total", "Reconnections to the event bus.")
dead_letters = Counter("tuneloop_dead_letters_total", "Events kept as dead letters.", ["consumer"])
