"""Desired against actual: ordered, printable, invertible steps, and the proof that they took."""
