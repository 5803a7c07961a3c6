"""What every process needs while it runs: log, metrics, limits, and looking into it.

State that processes share lives here, in memory or files that were mapped before the fork. Nothing
here knows what a message or a session goes through.
"""
