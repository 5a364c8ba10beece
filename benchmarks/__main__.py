"""`make bench`: every benchmark in turn."""

from benchmarks import interpreter, startup, training

if __name__ == "__main__":
    startup.main()
    interpreter.main()
    training.main()
