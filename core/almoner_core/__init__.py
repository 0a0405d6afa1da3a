"""Almoner's pure core: value types, the API, the wire contracts. No I/O, no clock, no global state."""
