"""The study: cells, results, findings, baselines."""
