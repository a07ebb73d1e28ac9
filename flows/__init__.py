"""Prefect flows: decorators, names and artifacts around single calls into ``ospo``."""
