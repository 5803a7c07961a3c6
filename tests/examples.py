"""The number of examples of a property test, in proportion to the profile of Hypothesis."""

from hypothesis import settings

_ORDINARY = 100  # examples of a test without a number, in the profile of `make test`


def examples(count: int) -> int:
    """Return `count`, multiplied as the profile multiplies the examples."""
    default = settings.get_profile(settings.get_current_profile_name()).max_examples
    return count * default // _ORDINARY
