"""The almoner command."""
