"""PURE: which executions may start now, and why the others wait."""
