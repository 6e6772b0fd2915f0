"""Keep a few users from steering the policy, and raise alarms when it goes wrong.

Pure functions over figures: `raters` (how reliable each rater is), `shares` (how much of a batch
one user may be), `alarms`. `batching.trust` applies the first two, `monitoring` checks the alarms.
"""
