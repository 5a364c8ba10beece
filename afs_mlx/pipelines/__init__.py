"""One verb a file: a config in, typed events while it works, a result out. They never print, exit, know each other."""
