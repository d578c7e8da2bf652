"""``python -m wuneng_cli``: the ``wuneng`` command where its script is not on the path."""

from wuneng_cli.main import main

if __name__ == "__main__":
    main()
