"""What keeps a few users from steering the policy, and what says that it goes astray.

Pure functions over figures: `raters` (how reliable each rater is), `shares` (how much of a batch
one of them is), `alarms`. `trust` puts the first two into a batch, `watch` looks at the alarms.
"""
