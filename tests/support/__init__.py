"""What several test folders share. Found by ``pythonpath`` in the root pyproject.toml."""
