"""Failures that are explained in one sentence instead of a stack trace."""


class CompareError(Exception):
    """Something outside this program went wrong: a tool is missing, a proxy did not start, a load saw errors."""
