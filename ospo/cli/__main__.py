"""``python -m ospo.cli``, as ``accelerate launch -m ospo.cli`` starts it."""

from ospo.cli import main

if __name__ == "__main__":
    main()
