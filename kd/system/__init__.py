"""Safe wrappers around the operating system: files, processes, signals, terminals."""
