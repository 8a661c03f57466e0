"""What holds for every test."""

from hypothesis import settings

# How long an example takes depends on what else the machine does: a test that hangs is ended by
# pytest's own time limit. What Hypothesis sets where ``CI`` is set stays.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")
