"""Hands a trained student to programs that know nothing of this package."""
