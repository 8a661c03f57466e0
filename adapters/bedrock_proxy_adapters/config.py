"""The composition root: environment to proxy."""
