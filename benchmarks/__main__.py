"""`make bench`: every benchmark in turn."""

from benchmarks import (
    convert,
    export,
    fusing,
    inference,
    interpreter,
    planning,
    routing,
    startup,
    training,
    training_memory,
)

if __name__ == "__main__":
    startup.main()
    interpreter.main()
    convert.main()
    fusing.main()
    export.main()
    training.main()
    training_memory.main()
    planning.main()
    inference.main()
    routing.main()
