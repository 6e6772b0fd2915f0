"""Commands that need the learner, found by `tuneloop` through entry points.

Nothing heavy is imported here at module level: `tuneloop --help` lists them all.
"""
