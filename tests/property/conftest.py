from hypothesis import settings

# The first call of a torch operation can take longer than Hypothesis's 200 ms for an example.
settings.register_profile("brim", deadline=None)
settings.load_profile("brim")
