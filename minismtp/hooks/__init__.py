"""The plugins: what hooks exist, how they are loaded, called, guarded and timed.

This is the only folder that knows pluggy. A plugin that raises or hangs becomes a deferral here.
"""
