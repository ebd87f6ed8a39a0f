"""`python -m fmen_jax` is `fmen-jax`."""

from fmen_jax.cli import main

if __name__ == '__main__':
    main()
