"""kvrag: retrieval returns KV caches."""
