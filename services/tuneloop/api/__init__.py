"""Every document of the HTTP API, stated once, as a type of what its JSON holds.

The gateway's routes return them, OpenAPI shows them, the client and the commands read them. Times
are RFC 3339 in UTC. Nothing here needs more than the standard library and `typing_extensions`.

* `openai`: completions, chunks, models, errors
* `feedback`: feedback and its acknowledgements, scores, imports
* `policies`: versions, what serves, releases
* `learner`: the learner's status, events of the gateway
* `lineage`: what feedback and users reached, what was forgotten
"""
