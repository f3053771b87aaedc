"""The run-time type checker of the tests: beartype, which here takes an int where a float is asked for, as Python does."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
