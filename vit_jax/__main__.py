"""``python -m vit_jax``, and the command ``vit_jax``."""

import sys


def main() -> int:
    """Runs one command; an interruption while its modules are read is said as one later is."""
    try:
        from vit_jax import cli

        return cli.main()
    except KeyboardInterrupt:
        print("vit_jax: interrupted.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
