"""The declarative agent loop."""
