"""The wire: bytes in, values out; no socket and no clock."""
