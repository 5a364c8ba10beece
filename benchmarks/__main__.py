"""`make bench`: every benchmark in turn."""

from benchmarks import startup, training

if __name__ == "__main__":
    startup.main()
    training.main()
