"""Keep a few users from steering the policy, and raise alarms when it goes wrong.

Pure functions over figures: `raters` (how reliable each rater is), `standing` (what a user's n-th
judgement counts), `alarms`. `batching.trust` applies the first two, `monitoring` checks the alarms;
`gradient_norms` (which is a spike) is for the optimizer.
"""
