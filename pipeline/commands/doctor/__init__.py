"""`python -m pipeline doctor`: diagnose the project and suggest a fix for each problem. It changes nothing.

A check imports what it needs inside its function, so that it reports a broken installation instead of failing with it.
"""
