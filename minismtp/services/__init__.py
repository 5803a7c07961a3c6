"""What plugins and the core ask of the outside: DNS, TLS, HTTP, shared state.

Every question has a deadline and a bound on the answer, and a service that fails raises an error
that a caller can name in a reply or a log line.
"""
