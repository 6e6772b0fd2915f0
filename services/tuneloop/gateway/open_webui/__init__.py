"""Open WebUI in front of the gateway: its headers, its ratings, the function it runs."""
