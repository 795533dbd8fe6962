"""`python -m brim`, as `accelerate launch -m brim` needs it."""

from brim.cli import main

if __name__ == "__main__":
    main()
