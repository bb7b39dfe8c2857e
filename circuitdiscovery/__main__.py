"""`python -m circuitdiscovery` is the command line."""

from circuitdiscovery.cli.main import main

if __name__ == "__main__":
    main()
