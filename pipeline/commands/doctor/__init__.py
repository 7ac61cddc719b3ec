"""`python -m pipeline doctor`: diagnose the project and suggest a fix for each problem. It changes nothing.

What a check needs is imported inside it, so that it reports a broken installation instead of failing with it.
"""
