"""What every process needs while it runs: log, metrics, limits and diagnostics.

State that processes share lives here, in memory or files that were mapped before the fork. Nothing
here knows how a message or a session is processed.
"""
