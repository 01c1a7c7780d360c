"""The shelf of tasks: one file a task; its name is the file's name."""
