"""``python -m consilium``."""

from consilium.cli import main

if __name__ == "__main__":
    main()
