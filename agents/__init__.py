"""Policies of providers: what acts (policy), how it is kept (export), how it is judged (metrics, statistics, evaluate, report)."""
