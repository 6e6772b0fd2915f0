"""What the gateway shows live: events, optimizer steps, throughput."""
