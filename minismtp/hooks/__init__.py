"""Plugins: their hooks, and how they are loaded, called, guarded and timed.

This is the only folder that imports pluggy. If a plugin raises an exception, the mail is deferred.
"""
