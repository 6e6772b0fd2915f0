"""The checks of `tuneloop doctor`: each module checks one part of the machine."""
