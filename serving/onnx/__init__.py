"""Reads an exported graph without torch."""

__all__: list[str] = []
