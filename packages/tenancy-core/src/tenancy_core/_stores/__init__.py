"""Tenant stores that the core ships: ``sql`` for every SQLAlchemy dialect, and one in memory."""
