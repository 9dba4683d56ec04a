"""The settings: every value with its unit and source, read by settings.py."""
