"""The commands of `minismtp`, one module each: its options, its work and its output.

`main` finds the command and reports errors; `common`, `text` and `selection` hold what several
commands need. A module imports what its command needs at its top, because `main` imports only the
module of the command that was asked for.
"""
