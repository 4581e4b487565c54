"""The backup engine: pure Python, no Django, no connector, no store of its own."""
