"""Frameworks that run behind the meter: what they are, how they are installed, and the page about them."""
