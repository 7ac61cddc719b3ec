"""Metrics, reports and figures of a model."""
