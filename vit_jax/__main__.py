"""``python -m vit_jax``, and the command ``vit_jax``."""

import os
import sys


def main() -> int:
    """Runs one command; an interruption while its modules are read is said as one later is."""
    try:
        from vit_jax import cli

        status = cli.main()
    except KeyboardInterrupt:
        print("vit_jax: interrupted.", file=sys.stderr)
        return 1
    storage = sys.modules.get("vit_jax.checkpoint.noise")
    if storage and storage.GAVE_UP.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
