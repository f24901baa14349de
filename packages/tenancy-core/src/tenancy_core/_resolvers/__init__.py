"""Resolvers that the core ships, and the chain of several."""
