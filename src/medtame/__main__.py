"""`python -m medtame` is `medtame`."""

from medtame.cli import main

if __name__ == "__main__":
    main()
