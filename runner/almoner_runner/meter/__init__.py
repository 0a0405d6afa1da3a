"""The proxy that holds the provider keys and meters every call."""
