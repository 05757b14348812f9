"""Nouns of tunsec: frozen values, enums and errors. Imports nothing of ours and does nothing."""
