"""The commands of `minismtp`: options in, text out, an exit status."""
