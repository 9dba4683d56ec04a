"""What a user can mend: an error whose text is one line that names place, rule, value and way out."""


class Slipped(Exception):  # noqa: N818 - a slip of the user's, not of the program
    """Something outside the program is not as it must be: a port is taken, an engine is not there, a file is damaged."""
