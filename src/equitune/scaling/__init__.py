"""Runners that save passes or memory, around any other runner."""

__all__: list[str] = []
