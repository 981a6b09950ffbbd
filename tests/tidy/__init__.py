"""The house tests itself: house rules as tests over the source tree."""
