"""How many examples a property test takes, in proportion to the profile of Hypothesis."""

from hypothesis import settings

_ORDINARY = 100  # examples of a test that says nothing, in the profile of `make test`


def examples(count: int) -> int:
    """Return `count`, and as many times more as the profile has more examples."""
    default = settings.get_profile(settings.get_current_profile_name()).max_examples
    return count * default // _ORDINARY
