"""Audits: questions about a run answered with a number and an interval."""
