"""`python -m kvrag`, which `accelerate launch -m kvrag` needs."""

from kvrag.cli import main

if __name__ == "__main__":
    main()
