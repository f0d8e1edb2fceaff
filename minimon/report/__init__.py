"""Scores -> report.json, report.md, figures."""
