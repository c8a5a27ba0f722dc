"""`python -m effillm_server.cli`: the same as `effillm`."""

from effillm_server.cli.main import main

if __name__ == "__main__":
    main()
