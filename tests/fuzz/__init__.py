"""Every parser of what strangers, hosts, services and files say, as functions of octets.

`targets.TARGETS` is the table. `make fuzz-parsers` (`drive`) feeds it with what atheris makes up;
`tests/test_parsers_fuzzed.py` feeds it with the corpus in `tests/data/fuzz`, without atheris.
"""
