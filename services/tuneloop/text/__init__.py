"""Text that comes from files and callers, read in one way.

* `lines`: where lines end
* `unicode`: strings that UTF-8 can hold
* `messages`: the turns of a conversation; needs pydantic
"""
