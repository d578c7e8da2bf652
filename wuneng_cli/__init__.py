"""The ``wuneng`` command: parse arguments, call the library, show the result."""
