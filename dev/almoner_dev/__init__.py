"""Almoner's development tools: a real control plane, PostgreSQL and more, on this machine alone.

Nothing here is part of the product, and the product imports nothing from here.
"""
