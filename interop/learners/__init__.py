"""Whole BYOL learners in other libraries' files: one file a library, and `checkpoint.py`, which users call.

A library's file makes one `library.Library`: how its state dicts are recognised, whose tensor each of them is, and how
they become a training state and come from one; names and arrays only, no files. A new library is a new file and its
line in `checkpoint.SOURCES`: then its learners are inspected, loaded, saved and started from like any other's. (The
command line's help names what can be written without loading any of this: `byol_jax.cli.commands.export.LAYOUTS`.)
"""
