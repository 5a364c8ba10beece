"""`make bench`: every benchmark in turn."""

from benchmarks import convert, fusing, inference, interpreter, planning, startup, training, training_memory

if __name__ == "__main__":
    startup.main()
    interpreter.main()
    convert.main()
    fusing.main()
    training.main()
    training_memory.main()
    planning.main()
    inference.main()
