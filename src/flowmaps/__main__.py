"""The program: `flowmaps`, or `python -m flowmaps`."""

import sys

LIBRARIES = ("tyro", "rich", "matplotlib", "huggingface_hub", "pandas")
"""What the extra `cli` installs."""


def main() -> None:
    """Run the command line, or say what to install where a library of it is missing, with exit code 2."""
    try:
        from .cli.main import main as run

        run()
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        print(f"flowmaps: {library} is not installed: pip install 'flowmaps[cli]'.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # while libraries are imported; later the command line says what is left
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
