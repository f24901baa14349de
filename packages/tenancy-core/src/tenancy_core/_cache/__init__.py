"""Cache backends that the core ships."""
