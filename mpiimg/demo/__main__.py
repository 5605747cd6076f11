"""The program behind `python -m mpiimg.demo`."""

from mpiimg.demo.demo import main

if __name__ == "__main__":
    raise SystemExit(main())
