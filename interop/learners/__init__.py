"""Whole BYOL learners in other libraries' files: one file a library, and `checkpoint.py`, which users call.

A library's file has `LAYOUTS` (names of what it writes), `recognises(keys)`, `from_state_dict(state_dict, *, like,
where)` and `to_state_dict(state, *, layout, where)`; names and arrays only, no files. A new library is a new file and
its line in `checkpoint.SOURCES`.
"""
